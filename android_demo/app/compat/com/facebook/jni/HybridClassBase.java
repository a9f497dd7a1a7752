package com.facebook.jni;

/** A peer that is its own holder. Looked up by name. */
public abstract class HybridClassBase extends HybridData {}
