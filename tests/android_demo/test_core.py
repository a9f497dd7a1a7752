"""The Java core's own unit tests, by JUnit."""


def test_the_core_keeps_its_promises(junit):
    assert "OK (" in junit("org.coda.core.CoreTest")
