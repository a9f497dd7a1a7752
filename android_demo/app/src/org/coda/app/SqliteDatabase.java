package org.coda.app;

import android.database.Cursor;
import android.database.SQLException;
import android.database.sqlite.SQLiteDatabase;
import android.database.sqlite.SQLiteDatabaseCorruptException;
import android.database.sqlite.SQLiteFullException;
import android.database.DatabaseErrorHandler;

import org.coda.core.CodaError.StoreError;
import org.coda.core.Database;

import java.io.File;
import java.util.ArrayList;
import java.util.List;

/** Android's SQLite. What it says of a failure is put into words that tell what to do. */
final class SqliteDatabase implements Database {
    /** Android's own handler deletes a damaged file; the user's history is in it. */
    private static final DatabaseErrorHandler KEEP = new DatabaseErrorHandler() {
        @Override
        public void onCorruption(SQLiteDatabase database) {
            // the error that follows says so on the screen
        }
    };

    private final SQLiteDatabase database;

    SqliteDatabase(File path) {
        try {
            database = SQLiteDatabase.openDatabase(path.getPath(), null,
                    SQLiteDatabase.CREATE_IF_NECESSARY | SQLiteDatabase.ENABLE_WRITE_AHEAD_LOGGING, KEEP);
            query("PRAGMA synchronous = FULL");
        } catch (SQLException error) {
            throw said(error);
        }
    }

    private static StoreError said(SQLException error) {
        if (error instanceof SQLiteFullException) {
            return new StoreError("the phone's storage is full; free some space. Nothing that was stored is lost");
        }
        if (error instanceof SQLiteDatabaseCorruptException) {
            return new StoreError("the app's database is damaged; 'Repair' saves what can be read of it");
        }
        return new StoreError("the app's database: " + error.getMessage());
    }

    @Override
    public void begin() {
        try {
            database.beginTransaction();
        } catch (SQLException error) {
            throw said(error);
        }
    }

    @Override
    public void commit() {
        try {
            database.setTransactionSuccessful();
            database.endTransaction();
        } catch (SQLException error) {
            throw said(error);
        }
    }

    @Override
    public void rollback() {
        if (database.inTransaction()) {
            database.endTransaction();
        }
    }

    @Override
    public void execute(String sql, Object... values) {
        try {
            database.execSQL(sql, values);
        } catch (SQLException error) {
            throw said(error);
        }
    }

    @Override
    public List<Object[]> query(String sql, String... values) {
        try (Cursor cursor = database.rawQuery(sql, values)) {
            List<Object[]> rows = new ArrayList<>();
            while (cursor.moveToNext()) {
                Object[] row = new Object[cursor.getColumnCount()];
                for (int i = 0; i < row.length; i++) {
                    row[i] = value(cursor, i);
                }
                rows.add(row);
            }
            return rows;
        } catch (SQLException error) {
            throw said(error);
        }
    }

    private static Object value(Cursor cursor, int column) {
        switch (cursor.getType(column)) {
            case Cursor.FIELD_TYPE_INTEGER:
                return cursor.getLong(column);
            case Cursor.FIELD_TYPE_FLOAT:
                return cursor.getDouble(column);
            case Cursor.FIELD_TYPE_STRING:
                return cursor.getString(column);
            case Cursor.FIELD_TYPE_BLOB:
                return cursor.getBlob(column);
            default:
                return null;
        }
    }

    @Override
    public void close() {
        database.close();
    }
}
