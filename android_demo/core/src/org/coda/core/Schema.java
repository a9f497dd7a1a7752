package org.coda.core;

import java.util.ArrayList;
import java.util.Collections;
import java.util.List;

/** The inputs of a model, in the order in which it takes them. */
public final class Schema {
    public final List<Feature> features;

    /** One input: see {@code Feature} in {@code device_runtime/samples.py}. */
    public static final class Feature {
        public final String name;
        /** id: one id a sample; ids: a history of at most {@code bound}; float: {@code bound} numbers. */
        public final String kind;
        public final String vocabulary;
        public final int bound;
        public final boolean ordered;

        Feature(Fields fields) {
            name = fields.string("name");
            kind = fields.oneOf("kind", "id", "ids", "float");
            vocabulary = fields.string("vocabulary", "");
            bound = fields.int32("bound", 1);
            ordered = fields.flag("ordered", true);
            fields.nothingElse();
        }
    }

    Schema(Fields fields) {
        List<Feature> found = new ArrayList<>();
        for (Fields each : fields.objects("features")) {
            found.add(new Feature(each));
        }
        fields.nothingElse();
        features = Collections.unmodifiableList(found);
    }

    public static Schema parse(byte[] json) {
        return new Schema(Fields.parse(json, "the schema"));
    }

    /** Null where there is no feature of that name. */
    Feature feature(String name) {
        for (Feature feature : features) {
            if (feature.name.equals(name)) {
                return feature;
            }
        }
        return null;
    }
}
