package com.facebook.jni;

import java.util.Iterator;

/** Lets native code walk a collection. Looked up by name, its field too. */
public class IteratorHelper {
    private final Iterator<?> mIterator;
    private Object mElement;

    public IteratorHelper(Iterable<?> items) {
        mIterator = items.iterator();
    }

    boolean hasNext() {
        boolean more = mIterator.hasNext();
        mElement = more ? mIterator.next() : null;
        return more;
    }
}
