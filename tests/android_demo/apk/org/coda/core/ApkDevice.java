package org.coda.core;

import org.coda.app.ExecuTorchEngine;

import java.io.File;
import java.io.IOException;

/** {@link HostDevice} with the app's own engine. */
public final class ApkDevice {
    private ApkDevice() {}

    public static void main(String[] args) throws IOException {
        HostDevice.run(new ExecuTorchEngine(new File(System.getProperty("cpuinfo"))));
    }
}
