package org.coda.core;

import org.coda.core.CodaError.StoreError;
import org.coda.core.Manifest.FileRef;

import java.io.File;
import java.util.HashSet;
import java.util.Set;

/** Blobs in a folder, by sha256. Written under a temporary name and renamed, so a blob that exists is whole. */
final class Blobs {
    final File folder;
    /** Those whose hash this object has seen to be right: a round reads what it has just received. */
    private final Set<String> genuine = new HashSet<>();

    Blobs(File folder) {
        this.folder = folder;
    }

    File path(FileRef ref) {
        return new File(folder, ref.sha256);
    }

    /** What has arrived of a blob so far. */
    File part(FileRef ref) {
        return new File(folder, ".part-" + ref.sha256);
    }

    boolean has(FileRef ref) {
        return path(ref).isFile() && path(ref).length() == ref.size;
    }

    /** The file itself, verified. Raises: TrustError, StoreError. */
    byte[] read(FileRef ref) {
        if (!path(ref).isFile()) {
            throw new StoreError("blob " + ref.sha256.substring(0, 12) + "… is gone from " + folder
                    + "; run a round to pull it again");
        }
        byte[] stored = Files.read(path(ref));
        if (!genuine.contains(ref.sha256) || stored.length != ref.size) {
            ref.check(stored);
            genuine.add(ref.sha256);
        }
        return ref.unpack(stored);
    }

    /** Let a blob that has arrived take its place. Returns whether it is the one named; else nothing of it is kept. */
    boolean accept(FileRef ref) {
        File part = part(ref);
        if (part.length() != ref.size || !Bytes.hex(Bytes.sha256(Files.read(part))).equals(ref.sha256)) {
            Files.delete(part);
            return false;
        }
        Files.move(part, path(ref));
        genuine.add(ref.sha256);
        return true;
    }

    /** Engines load from files; the decompressed graph lies beside its blob. */
    File unpacked(FileRef ref) {
        File path = new File(new File(folder, "unpacked"), ref.sha256);
        if (path.length() != ref.rawSize) {
            Files.writeAtomically(path, read(ref), false);
        }
        return path;
    }
}
