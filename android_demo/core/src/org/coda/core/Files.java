package org.coda.core;

import org.coda.core.CodaError.StoreError;

import java.io.File;
import java.io.FileInputStream;
import java.io.FileOutputStream;
import java.io.IOException;

/**
 * Files that are there whole or not at all. What a rename leads to is durable once the folder is; Java on Android cannot
 * sync a folder, so after a power cut the old state may be there, never half of the new one.
 */
public final class Files {
    private Files() {}

    /** @throws StoreError it cannot be read. */
    public static byte[] read(File path) {
        try (FileInputStream file = new FileInputStream(path)) {
            byte[] data = new byte[(int) path.length()];
            int at = 0;
            while (at < data.length) {
                int got = file.read(data, at, data.length - at);
                if (got < 0) {
                    throw new IOException("it is shorter than it was");
                }
                at += got;
            }
            return data;
        } catch (IOException error) {
            throw new StoreError("cannot read " + path + ": " + error.getMessage());
        }
    }

    /** @throws StoreError the disk refused; a file that was there before is unchanged. */
    public static void writeAtomically(File path, byte[] data, boolean ownerOnly) {
        makeFolder(path.getParentFile());
        File temporary = new File(path.getParentFile(), ".new-" + path.getName() + "-" + Signer.nonce());
        try {
            try (FileOutputStream file = new FileOutputStream(temporary)) {
                if (ownerOnly && !(temporary.setReadable(false, false) && temporary.setReadable(true, true))) {
                    throw new IOException("its permissions cannot be set");
                }
                file.write(data);
                file.getFD().sync();
            }
            move(temporary, path);
        } catch (IOException error) {
            delete(temporary);
            throw new StoreError("cannot write " + path + ": " + error.getMessage() + "; free some space");
        }
    }

    /** Write to a file that exists, such as one of the kernel's; whether that was allowed. */
    public static boolean append(File path, String text) {
        try (FileOutputStream file = new FileOutputStream(path, true)) {
            file.write(Bytes.utf8(text));
            return true;
        } catch (IOException error) {
            return false;
        }
    }

    /** @throws StoreError the disk refused, or there is no such file. */
    public static void move(File from, File to) {
        makeFolder(to.getParentFile());
        if (!from.renameTo(to)) {
            throw new StoreError("cannot move " + from + " to " + to + "; check that it can be written");
        }
    }

    static void makeFolder(File folder) {
        if (!folder.isDirectory() && !folder.mkdirs() && !folder.isDirectory()) {
            throw new StoreError("cannot make the folder " + folder + "; free some space");
        }
    }

    /** Remove a file, or a folder with all that is in it; harmless if it is gone. */
    public static boolean delete(File path) {
        for (File each : list(path)) {
            delete(each);
        }
        return path.delete();
    }

    /** What is in a folder; nothing where there is none. */
    static File[] list(File folder) {
        File[] found = folder.listFiles();
        return found == null ? new File[0] : found;
    }

    /** Bytes of all files below a folder. */
    public static long bytes(File folder) {
        long total = 0;
        for (File each : list(folder)) {
            total += each.isDirectory() ? bytes(each) : each.length();
        }
        return total;
    }
}
