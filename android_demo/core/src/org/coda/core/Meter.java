package org.coda.core;

/** What a platform can tell of this process; {@link Round} reads it before and after each phase. */
public interface Meter {
    /** CPU seconds (user, system) of the whole process so far. */
    double[] cpuSeconds();

    /** Begin to watch memory anew, if the platform can; called when a phase starts. */
    void resetPeak();

    /** Highest resident memory, MiB, since {@link #resetPeak} where {@link #peakSource} is "phase". */
    double peakMib();

    /** "phase", or "process" where the high-water mark cannot be reset. */
    String peakSource();

    /** Joules that the whole device has used so far; null where it does not tell. */
    Double energyJ();

    /** Of the battery or the hottest zone, in degrees Celsius; null where it does not tell. */
    Double temperatureC();
}
