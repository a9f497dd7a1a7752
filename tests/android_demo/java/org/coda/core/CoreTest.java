package org.coda.core;

import static org.junit.Assert.assertArrayEquals;
import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
import static org.junit.Assert.assertNull;
import static org.junit.Assert.assertTrue;
import static org.junit.Assert.fail;

import org.coda.core.CodaError.InputError;
import org.coda.core.CodaError.StoreError;
import org.coda.core.CodaError.WireError;
import org.coda.core.CodaError.Yielded;
import org.coda.core.Store.Event;

import org.junit.Rule;
import org.junit.Test;
import org.junit.rules.TemporaryFolder;

import java.io.File;
import java.io.IOException;
import java.io.RandomAccessFile;
import java.nio.channels.FileLock;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;

/** What the core promises by itself; that it agrees with the Python side is asked from there. */
public class CoreTest {
    @Rule
    public TemporaryFolder folder = new TemporaryFolder();

    private Store store(String name) {
        return new Store(new JdbcDatabase(new File(folder.getRoot(), name)));
    }

    private static Progress progress() {
        return new Progress(new Progress.Inputs(1, true, "executorch 1", 0, 0, 0));
    }

    /** RFC 8032, section 7.1, tests 1 to 3. */
    @Test
    public void signaturesAreThoseOfTheStandard() {
        String[][] vectors = {
            {
                "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
                "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a", "",
                "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5"
                    + "f0595bbe24655141438e7a100b",
            },
            {
                "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
                "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c", "72",
                "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2e"
                    + "aeb4302aeeb00d291612bb0c00",
            },
            {
                "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
                "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025", "af82",
                "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15"
                    + "e9716ed28dc027beceea1ec40a",
            },
        };
        for (String[] vector : vectors) {
            byte[] secret = Bytes.unhex(vector[0]);
            assertEquals(vector[1], Bytes.hex(Ed25519.publicKey(secret)));
            assertEquals(vector[3], Bytes.hex(Ed25519.sign(secret, Bytes.unhex(vector[1]), Bytes.unhex(vector[2]))));
            assertTrue(Ed25519.verify(Bytes.unhex(vector[1]), Bytes.unhex(vector[2]), Bytes.unhex(vector[3])));
        }
    }

    @Test
    public void keysOfSmallOrderAndScalarsBeyondTheOrderSignNothing() {
        byte[] neutral = new byte[32];
        neutral[0] = 1;
        assertFalse(Ed25519.verify(neutral, new byte[0], Bytes.join(neutral, new byte[32])));
        byte[] secret = new byte[32];
        byte[] signature = Ed25519.sign(secret, Ed25519.publicKey(secret), new byte[0]);
        byte[] order = Bytes.unhex("edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010");
        int carry = 0;
        for (int i = 0; i < 32; i++) { // the same scalar, plus the order: another text of the same signature
            carry += (signature[32 + i] & 255) + (order[i] & 255);
            signature[32 + i] = (byte) carry;
            carry >>= 8;
        }
        assertFalse(Ed25519.verify(Ed25519.publicKey(secret), new byte[0], signature));
    }

    @Test
    public void aHistoryIsReadAndItsBadRowsAreCounted() {
        History history = new History("\uFEFFitem_id,timestamp,label,rating\r\n\"a,\"\"b\",5,1,\r\nc,6,,4.5\n\nd,0,1,\ne,7,2,\n"
                + "f,8,,\ng,9\n");
        assertEquals(2, history.events.size());
        assertEquals("a,\"b", history.events.get(0).item);
        assertNull(history.events.get(1).label);
        assertEquals(4.5, history.events.get(1).rating, 0);
        assertEquals(4, history.bad);
        assertEquals("row 4: timestamp is not in seconds since 1970", history.examples.get(0));
        try {
            new History("item,when\n1,2\n");
            fail();
        } catch (InputError error) {
            assertEquals("a history needs a header with item_id, timestamp and label or rating; it has [item, when]",
                    error.getMessage());
        }
    }

    @Test
    public void eventsAreKeptOnceAndInTheirOrder() {
        try (Store store = store("a.db")) {
            List<Event> events = Arrays.asList(new Event("b", 20, 1.0, null, true), new Event("a", 10, null, 3.0, true),
                    new Event("c", 20, 0.0, null, true));
            assertEquals(3, store.addEvents(events));
            assertEquals(0, store.addEvents(events));
            List<String> order = new ArrayList<>();
            for (Event event : store.events(Long.MAX_VALUE, 100)) {
                order.add(event.item);
            }
            assertEquals(Arrays.asList("a", "b", "c"), order);
            assertEquals(1, store.events(2, 1).size());
            assertEquals("b", store.events(2, 1).get(0).item);
        }
    }

    @Test
    public void aRoundGoesOnlyWhereTheJournalLetsIt() {
        try (Store store = store("a.db")) {
            store.startRound("r1", 1, progress());
            store.advanceRound("r1", "pulled", progress());
            try {
                store.advanceRound("r1", "judged", progress());
                fail();
            } catch (StoreError error) {
                assertEquals("round r1 cannot go from pulled to judged", error.getMessage());
            }
            assertEquals("pulled", store.unfinished().state);
            store.startRound("r2", 2, progress());
            assertEquals("interrupted", store.rounds().get(0).state);
            assertEquals("r2", store.unfinished().id);
        }
    }

    @Test
    public void weightsServeForTheirBundleOnly() {
        try (Store store = store("a.db")) {
            Progress progress = progress();
            progress.bundle = 4;
            store.startRound("r1", 1, progress);
            for (String state : new String[] {"pulled", "encoded", "tuned", "judged"}) {
                store.advanceRound("r1", state, progress);
            }
            store.activateRound("r1", progress, "r1");
            assertEquals("r1", store.weights(4));
            assertNull(store.weights(5));
            store.dropWeights();
            assertNull(store.weights(4));
        }
    }

    @Test
    public void anotherProgramsDatabaseAndADamagedOneAreRefused() {
        File path = new File(folder.getRoot(), "b.db");
        try (JdbcDatabase database = new JdbcDatabase(path)) {
            database.execute("CREATE TABLE other (x)");
        }
        assertRefused("b.db", "update the app, or erase its data");
        Files.writeAtomically(new File(folder.getRoot(), "c.db"), Bytes.utf8("this is not SQLite at all, by far"), false);
        assertRefused("c.db", "not a database");
        try (Store store = store("d.db")) {
            store.set("a", "b");
        }
        assertEquals("b", store("d.db").setting("a"));
    }

    private void assertRefused(String name, String because) {
        try {
            store(name);
            fail();
        } catch (StoreError error) {
            assertTrue(error.getMessage(), error.getMessage().contains(because));
        }
    }

    @Test
    public void aRoundIsTakenUpOnlyWhereEverythingIsAsItWas() {
        Progress was = progress();
        was.manifest = "m";
        was.files.put("encoded", "hash");
        Progress.Inputs same = was.inputs;
        assertEquals("", was.obstacle("encoded", same, 5, "m", Arrays.asList("encoded")));
        assertEquals("another bundle serves now", was.obstacle("encoded", same, 5, "n", Arrays.asList("encoded")));
        assertEquals("its working file 'encoded' is gone or damaged",
                was.obstacle("encoded", same, 5, "m", new ArrayList<String>()));
        assertEquals("it was started 8 days ago", was.obstacle("started", same, 8 * 86400, "", new ArrayList<String>()));
        Progress.Inputs other = new Progress.Inputs(2, true, "executorch 1", 0, 0, 0);
        assertEquals("it was started with other options",
                was.obstacle("started", other, 5, "", new ArrayList<String>()));
    }

    private static final Engine NO_ENGINE = new Engine() {
        @Override
        public String name() {
            return "none";
        }

        @Override
        public String version() {
            return "0";
        }

        @Override
        public String format() {
            return "none";
        }

        @Override
        public boolean loops() {
            return false;
        }

        @Override
        public Graph load(File path, GraphSpec spec) {
            throw new AssertionError("nothing is to be run");
        }
    };

    @Test
    public void oneRoundAtATime() throws IOException {
        Round.Watcher watcher = new Round.Watcher() {
            @Override
            public void phase(String name) {
                throw new AssertionError("a second round has begun");
            }

            @Override
            public void pulse() {
                throw new AssertionError("a second round runs graphs");
            }
        };
        try (Store store = store("a.db");
                DeviceHome home = new DeviceHome(folder.getRoot(), store, "linux");
                Transport transport = new Transport("http://h", new ByteCounter(9), new Signer(new byte[32]), "d", null);
                RandomAccessFile file = new RandomAccessFile(new File(folder.getRoot(), "lock"), "rw");
                FileLock lock = file.getChannel().tryLock()) {
            assertTrue(lock.isValid());
            new Round(home, transport, NO_ENGINE, new JvmMeter(), watcher, Compressor.NONE,
                    new Round.Options()).run();
            fail();
        } catch (StoreError error) {
            assertEquals("a round is running already; wait for it, or stop it", error.getMessage());
        }
    }

    @Test
    public void addressesAndBudgetsAreChecked() {
        for (String url : new String[] {"ftp://a", "http://", "http://u@h", "http://h:0", "nonsense", "http://h/?q=1"}) {
            try {
                new Connection(url, new ByteCounter(1), null).close();
                fail(url);
            } catch (InputError error) {
                assertTrue(error.getMessage().contains("is not a server's address"));
            }
        }
        ByteCounter counter = new ByteCounter(100);
        counter.add("match", 60, 40);
        try {
            counter.check();
            fail();
        } catch (Yielded reason) {
            assertTrue(reason.getMessage().contains("60 bytes sent, 40 received"));
        }
    }

    @Test
    public void halvesAreRoundedToTheNearest() {
        for (int bits = 0; bits < 1 << 16; bits++) {
            float wide = Half.widen(bits);
            assertEquals(wide != wide, (bits & 0x7C00) == 0x7C00 && (bits & 0x3FF) != 0);
            if (wide == wide) {
                assertEquals(bits, Half.narrow(wide));
            }
        }
        assertEquals(Half.narrow(1f), Half.narrow(1f + 0x1p-11f)); // a tie: to even
        assertEquals(Half.narrow(1f + 0x1p-10f), Half.narrow(1f + 0x1.8p-11f));
        assertEquals(0x7C00, Half.narrow(65520f));
    }

    @Test
    public void aFieldThatDoesNotFitIsNamed() {
        byte[] json = Bytes.utf8("{\"features\":[{\"name\":\"item\",\"kind\":\"id\",\"bound\":\"x\"}]}");
        try {
            Schema.parse(json);
            fail();
        } catch (WireError error) {
            assertEquals("the schema, features: the field 'bound' must be a whole number", error.getMessage());
        }
    }

    @Test
    public void historiesThatShareStorageKeepItWhenTaken() {
        Ragged ragged = new Ragged(new int[] {7, 8, 9, 10}, new int[] {0, 0, 2}, new int[] {1, 2, 2});
        Ragged taken = ragged.take(new int[] {1, 0}).compact();
        assertArrayEquals(new int[] {7, 8}, taken.values);
        assertArrayEquals(new int[] {7, 8}, taken.row(0));
        assertArrayEquals(new int[] {10}, ragged.newest(1).row(2));
    }
}
