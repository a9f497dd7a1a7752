package org.coda.app;

import android.content.Context;
import android.content.Intent;
import android.content.IntentFilter;
import android.os.BatteryManager;
import android.os.Debug;
import android.os.Process;

import org.coda.core.CodaError;
import org.coda.core.Files;
import org.coda.core.Meter;

import java.io.BufferedReader;
import java.io.File;
import java.io.FileReader;
import java.io.IOException;

/** What Android lets an app ask about itself. Nothing is sampled by a thread, so a phase runs as it would without. */
final class AndroidMeter implements Meter {
    private static final File CLEAR = new File("/proc/self/clear_refs");
    private static final File STATUS = new File("/proc/self/status");

    private final Context context;
    private boolean resettable;

    AndroidMeter(Context context) {
        this.context = context;
    }

    /** All as user time: Android does not tell an app apart what the kernel did for it. */
    @Override
    public double[] cpuSeconds() {
        return new double[] {Process.getElapsedCpuTime() / 1000.0, 0};
    }

    @Override
    public void resetPeak() {
        resettable = Files.append(CLEAR, "5");
    }

    /** The kernel's high-water mark of resident memory; the system's own count where an app may not see that. */
    @Override
    public double peakMib() {
        try (BufferedReader lines = new BufferedReader(new FileReader(STATUS))) {
            for (String line = lines.readLine(); line != null; line = lines.readLine()) {
                if (line.startsWith("VmHWM:")) {
                    return Long.parseLong(line.substring("VmHWM:".length(), line.length() - "kB".length()).trim()) / 1024.0;
                }
            }
        } catch (IOException error) {
            resettable = false;
        }
        return pssMib();
    }

    @Override
    public String peakSource() {
        return resettable ? "phase" : "process";
    }

    /** Proportional set size, as `dumpsys meminfo` counts it. */
    static double pssMib() {
        Debug.MemoryInfo info = new Debug.MemoryInfo();
        Debug.getMemoryInfo(info);
        return info.getTotalPss() / 1024.0;
    }

    /** By the battery's own counter; null where there is none, or while it is being charged. */
    @Override
    public Double energyJ() {
        Intent battery = battery();
        if (battery == null || battery.getIntExtra(BatteryManager.EXTRA_PLUGGED, 0) != 0) {
            return null;
        }
        BatteryManager manager = (BatteryManager) context.getSystemService(Context.BATTERY_SERVICE);
        long left = manager.getLongProperty(BatteryManager.BATTERY_PROPERTY_ENERGY_COUNTER);
        return left <= 0 ? null : (Double) (-left * 3.6e-6); // nanowatt-hours that are left, so their negative rises
    }

    @Override
    public Double temperatureC() {
        Intent battery = battery();
        int tenths = battery == null ? 0 : battery.getIntExtra(BatteryManager.EXTRA_TEMPERATURE, 0);
        return tenths == 0 ? null : (Double) (tenths / 10.0);
    }

    private Intent battery() {
        return context.registerReceiver(null, new IntentFilter(Intent.ACTION_BATTERY_CHANGED));
    }

    /** What an error says to the user; those that are not ours keep their kind. */
    static String words(Throwable error) {
        return error instanceof CodaError ? error.getMessage() : error.toString();
    }
}
