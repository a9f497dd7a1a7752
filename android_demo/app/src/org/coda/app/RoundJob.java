package org.coda.app;

import android.app.job.JobInfo;
import android.app.job.JobParameters;
import android.app.job.JobScheduler;
import android.app.job.JobService;
import android.content.ComponentName;
import android.content.Context;
import android.util.Log;

import org.coda.core.CodaError;
import org.coda.core.CodaError.Yielded;
import org.coda.core.Round;

import java.util.concurrent.TimeUnit;

/** A round a day while the phone is idle, charging and on an unmetered network: the schedule of every CoDA device. */
public final class RoundJob extends JobService {
    private static final String TAG = "coda";
    private static final int ID = 1;

    private volatile boolean stopping;

    static void schedule(Context context) {
        scheduler(context).schedule(new JobInfo.Builder(ID, new ComponentName(context, RoundJob.class))
                .setRequiresDeviceIdle(true).setRequiresCharging(true)
                .setRequiredNetworkType(JobInfo.NETWORK_TYPE_UNMETERED)
                .setPeriodic(TimeUnit.DAYS.toMillis(1)).setPersisted(true).build());
    }

    static void cancel(Context context) {
        scheduler(context).cancel(ID);
    }

    static boolean isScheduled(Context context) {
        for (JobInfo job : scheduler(context).getAllPendingJobs()) {
            if (job.getId() == ID) {
                return true;
            }
        }
        return false;
    }

    private static JobScheduler scheduler(Context context) {
        return (JobScheduler) context.getSystemService(Context.JOB_SCHEDULER_SERVICE);
    }

    @Override
    public boolean onStartJob(final JobParameters parameters) {
        stopping = false;
        new Thread("round") {
            @Override
            public void run() {
                boolean again = false;
                try {
                    new Device(RoundJob.this).round(0, new Round.Watcher() {
                        @Override
                        public void phase(String name) {
                            Log.i(TAG, "phase " + name);
                        }

                        @Override
                        public void pulse() {
                            if (stopping) {
                                throw new Yielded("the phone is needed; the round goes on from its last step");
                            }
                        }
                    });
                } catch (Yielded reason) {
                    again = true;
                } catch (CodaError error) { // the journal has it; the screen shows it
                    Log.w(TAG, error.getMessage());
                }
                jobFinished(parameters, again);
            }
        }.start();
        return true;
    }

    /** A condition no longer holds: the round is put aside before its next step, and taken up when it holds again. */
    @Override
    public boolean onStopJob(JobParameters parameters) {
        stopping = true;
        return true;
    }
}
