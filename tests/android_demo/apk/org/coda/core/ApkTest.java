package org.coda.core;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertTrue;
import static org.junit.Assert.fail;

import org.coda.app.ExecuTorchEngine;
import org.coda.core.CodaError.EngineError;
import org.coda.core.CodaError.EngineUnavailable;

import org.junit.Assume;
import org.junit.Before;
import org.junit.Rule;
import org.junit.Test;
import org.junit.rules.TemporaryFolder;

import java.io.File;
import java.util.LinkedHashMap;
import java.util.Map;

/**
 * The APK's own classes and native libraries, on a JVM. Properties: vectors, a folder with the graph files and, for each,
 * inputs and what Python's ExecuTorch made of them; home, a device's folder with a bundle; cpuinfo.
 */
public class ApkTest {
    @Rule
    public TemporaryFolder folder = new TemporaryFolder();

    private final File vectors = new File(System.getProperty("vectors"));
    private Engine engine;

    @Before
    public void open() {
        engine = new ExecuTorchEngine(new File(System.getProperty("cpuinfo")));
    }

    private GraphSpec spec(String name) {
        return new GraphSpec(Fields.parse(Files.read(new File(vectors, name + ".json")), "a spec"));
    }

    private Map<String, Tensor> tensors(String name) {
        return Safetensors.read(Files.read(new File(vectors, name)), name);
    }

    @Test
    public void everyGraphOfTheBundleGivesWhatPythonsExecuTorchGives() {
        for (String name : new String[] {"encode", "score", "step", "classifier_score", "classifier_step"}) {
            try (Engine.Graph graph = engine.load(new File(vectors, name + ".pte"), spec(name))) {
                Map<String, Tensor> found = graph.run(tensors(name + ".in"));
                Map<String, Tensor> meant = tensors(name + ".out");
                assertEquals(meant.keySet(), found.keySet());
                for (Map.Entry<String, Tensor> each : meant.entrySet()) {
                    float[] is = found.get(each.getKey()).floats;
                    assertEquals(each.getValue().size(), is.length);
                    for (int i = 0; i < is.length; i++) {
                        float should = each.getValue().floats[i];
                        assertEquals(name + " " + each.getKey(), should, is[i], 1e-5 * Math.max(1, Math.abs(should)));
                    }
                }
            }
        }
    }

    @Test
    public void aFileThatIsNoGraphIsRefusedInPlainWords() {
        File junk = new File(folder.getRoot(), "0123456789abcdef");
        Files.writeAtomically(junk, Bytes.utf8("this is no program of any version of ExecuTorch"), false);
        for (File path : new File[] {junk, new File(folder.getRoot(), "nothing-is-here")}) {
            try {
                engine.load(path, spec("score"));
                fail();
            } catch (EngineError error) {
                assertTrue(error.getMessage(), error.getMessage().contains("export the bundle again, or update the app"));
            }
        }
    }

    @Test
    public void inputsThatDoNotFitAreAnErrorAndNotACrash() {
        try (Engine.Graph graph = engine.load(new File(vectors, "score.pte"), spec("score"))) {
            Map<String, Tensor> given = new LinkedHashMap<>(tensors("score.in"));
            String feature = spec("score").of("feature").get(0).name;
            given.put(feature, Tensor.of(new long[3], 3, 1));
            try {
                graph.run(given);
                fail();
            } catch (EngineError error) {
                assertTrue(error.getMessage(), error.getMessage().contains("given int64 [3, 1]"));
            }
            assertEquals(tensors("score.out").keySet(), graph.run(tensors("score.in")).keySet());
        }
    }

    @Test
    public void aPhoneThatIsTooOldIsToldSoBeforeTheLibraryIsLoaded() {
        Assume.assumeTrue(System.getProperty("os.arch").equals("aarch64"));
        File cpuinfo = new File(folder.getRoot(), "cpuinfo");
        Files.writeAtomically(cpuinfo, Bytes.utf8("processor\t: 0\nFeatures\t: fp asimd evtstrm aes\n"), false);
        try {
            new ExecuTorchEngine(cpuinfo);
            fail();
        } catch (EngineUnavailable error) {
            assertTrue(error.getMessage(), error.getMessage().contains("older than ARMv8.1"));
        }
    }
}
