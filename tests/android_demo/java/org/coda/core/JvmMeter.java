package org.coda.core;

import java.io.File;
import java.io.FileOutputStream;
import java.io.IOException;
import java.util.Scanner;

/** What Linux tells of a JVM. */
final class JvmMeter implements Meter {
    private boolean resettable;

    private static String read(String path) {
        try (Scanner scanner = new Scanner(new File(path), "UTF-8")) {
            return scanner.useDelimiter("\\A").next();
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
        for (String line : read("/proc/self/status").split("\n")) {
            if (line.startsWith("VmHWM:")) {
                return Long.parseLong(line.replaceAll("\\D", "")) / 1024.0;
            }
        }
        throw new IllegalStateException("no VmHWM");
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
