package org.coda.core;

import org.coda.core.Manifest.FileRef;

import java.util.Map;

/**
 * Brings the bundle that a device should have, as far as it lacks it, and tries the engine on it; the twin of
 * {@code device_runtime/pull.py}. From then on the bundle serves.
 */
final class Pull {
    final Manifest.Ref ref;
    Model model;

    Pull(final DeviceHome home, final Transport transport, final Engine engine, Round.Phases phases) {
        final Announced[] found = new Announced[1];
        phases.run("pull", new Runnable() {
            @Override
            public void run() {
                found[0] = Announced.find(home, transport, engine.name());
                transport.fetchBlob(found[0].ref.file(), home.blobs, "manifest");
                Manifest manifest = home.manifest(found[0].ref, found[0].key);
                for (Map.Entry<String, FileRef> file : manifest.files(engine.format()).entrySet()) {
                    transport.fetchBlob(file.getValue(), home.blobs,
                            file.getKey().startsWith("graph") ? "graphs" : "weights");
                }
                model = new Model(manifest, engine, home.blobs);
                for (int number : model.shardsFor(home.store.items())) {
                    transport.fetchBlob(manifest.tables.get(Model.VOCABULARY).shards.get(number), home.blobs,
                            "item rows");
                }
            }
        });
        ref = found[0].ref;
        String what = ref.manifest + "/" + engine.name() + "/" + engine.version();
        if (!home.store.passed(what)) {
            phases.run("self-test", new Runnable() {
                @Override
                public void run() {
                    SelfTest.run(model);
                }
            });
            home.store.passTest(what);
        }
        home.store.useBundle(ref, found[0].etag, found[0].key);
    }
}
