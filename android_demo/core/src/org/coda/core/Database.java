package org.coda.core;

import java.io.Closeable;
import java.util.List;

/** An SQLite file, by whatever the platform has for it. Every method raises {@link CodaError.StoreError} only. */
public interface Database extends Closeable {
    void begin();

    void commit();

    /** Forget what came since {@link #begin}; never raises. */
    void rollback();

    /** @param values Long, Double, String, byte[] or null. */
    void execute(String sql, Object... values);

    /** Rows of Long, Double, String, byte[] and null. */
    List<Object[]> query(String sql, String... values);

    @Override
    void close();
}
