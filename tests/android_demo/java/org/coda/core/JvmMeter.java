package org.coda.core;

import java.io.FileInputStream;
import java.io.FileOutputStream;
import java.io.IOException;
import java.nio.charset.StandardCharsets;

/** What Linux tells of a JVM. */
final class JvmMeter implements Meter {
    private boolean resettable;

    private static String read(String path) {
        byte[] text = new byte[8192];
        try (FileInputStream file = new FileInputStream(path)) {
            return new String(text, 0, file.read(text), StandardCharsets.US_ASCII);
        } catch (IOException error) {
            throw new IllegalStateException(error);
        }
    }

    @Override
    public double[] cpuSeconds() {
        String stat = read("/proc/self/stat");
        String[] fields = stat.substring(stat.lastIndexOf(')') + 2).split(" ");
        return new double[] {Long.parseLong(fields[11]) / 100.0, Long.parseLong(fields[12]) / 100.0};
    }

    @Override
    public void resetPeak() {
        try (FileOutputStream file = new FileOutputStream("/proc/self/clear_refs")) {
            file.write('5');
            resettable = true;
        } catch (IOException error) {
            resettable = false;
        }
    }

    @Override
    public double peakMib() {
        String status = read("/proc/self/status");
        int from = status.indexOf("VmHWM:") + "VmHWM:".length();
        return Long.parseLong(status.substring(from, status.indexOf("kB", from)).trim()) / 1024.0;
    }

    @Override
    public String peakSource() {
        return resettable ? "phase" : "process";
    }

    @Override
    public Double energyJ() {
        return null;
    }

    @Override
    public Double temperatureC() {
        return null;
    }
}
