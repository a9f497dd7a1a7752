package org.coda.core;

import org.coda.core.CodaError.StoreError;

import java.io.File;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import java.util.ArrayList;
import java.util.List;

/** SQLite on a JVM, as the app has it on Android. */
final class JdbcDatabase implements Database {
    static final Repair.Opener OPENER = new Repair.Opener() {
        @Override
        public Database open(File path) {
            return new JdbcDatabase(path);
        }
    };

    private final Connection connection;

    JdbcDatabase(File path) {
        try {
            connection = DriverManager.getConnection("jdbc:sqlite:" + path);
            try (Statement statement = connection.createStatement()) {
                statement.execute("PRAGMA journal_mode = WAL");
                statement.execute("PRAGMA synchronous = FULL");
            }
        } catch (SQLException error) {
            throw said(error);
        }
    }

    private static StoreError said(SQLException error) {
        return new StoreError("the database: " + error.getMessage());
    }

    @Override
    public void begin() {
        execute("BEGIN IMMEDIATE");
    }

    @Override
    public void commit() {
        execute("COMMIT");
    }

    @Override
    public void rollback() {
        try {
            execute("ROLLBACK");
        } catch (StoreError gone) {
            // SQLite has done it already
        }
    }

    @Override
    public void execute(String sql, Object... values) {
        try (PreparedStatement statement = connection.prepareStatement(sql)) {
            for (int i = 0; i < values.length; i++) {
                statement.setObject(i + 1, values[i]);
            }
            statement.execute();
        } catch (SQLException error) {
            throw said(error);
        }
    }

    @Override
    public List<Object[]> query(String sql, String... values) {
        try (PreparedStatement statement = connection.prepareStatement(sql)) {
            for (int i = 0; i < values.length; i++) {
                statement.setString(i + 1, values[i]);
            }
            List<Object[]> found = new ArrayList<>();
            try (ResultSet rows = statement.executeQuery()) {
                while (rows.next()) {
                    Object[] row = new Object[rows.getMetaData().getColumnCount()];
                    for (int i = 0; i < row.length; i++) {
                        row[i] = rows.getObject(i + 1);
                    }
                    found.add(row);
                }
            }
            return found;
        } catch (SQLException error) {
            throw said(error);
        }
    }

    @Override
    public void close() {
        try {
            connection.close();
        } catch (SQLException error) {
            throw said(error);
        }
    }
}
