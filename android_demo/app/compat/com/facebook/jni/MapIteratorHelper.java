package com.facebook.jni;

import java.util.Iterator;
import java.util.Map;

/** Lets native code walk a map. Looked up by name, its fields too. */
public class MapIteratorHelper {
    private final Iterator<? extends Map.Entry<?, ?>> mIterator;
    private Object mKey;
    private Object mValue;

    public MapIteratorHelper(Map<?, ?> map) {
        mIterator = map.entrySet().iterator();
    }

    boolean hasNext() {
        Map.Entry<?, ?> entry = mIterator.hasNext() ? mIterator.next() : null;
        mKey = entry == null ? null : entry.getKey();
        mValue = entry == null ? null : entry.getValue();
        return entry != null;
    }
}
