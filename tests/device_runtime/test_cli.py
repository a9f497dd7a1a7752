"""What a person at the terminal, or a script, gets to see."""

import json

import pytest

from device_runtime.cli import COMMANDS, main


@pytest.mark.parametrize("words", [[], *([name] for name in COMMANDS)])
def test_help_teaches(capsys, words):
    with pytest.raises(SystemExit) as stop:
        main([*words, "--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert "usage: coda" in said
    assert "start here:" in said if not words else "example:" in said


def test_a_command_alone_or_unknown_says_what_there_is(capsys):
    assert main([]) == 2
    assert "COMMAND" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(["nonsense"])
    assert stop.value.code == 2
    assert "invalid choice: 'nonsense'" in capsys.readouterr().err


def test_events_can_be_appended_and_counted(tmp_path, capsys):
    home = str(tmp_path / "phone")
    assert main(["device", "event", "--home", home, "--item", "7", "--label", "1", "--timestamp", "100"]) == 0
    assert main(["device", "event", "--home", home, "--item", "7", "--label", "1", "--timestamp", "100"]) == 0
    assert capsys.readouterr().out.split() == ["stored", "already", "known"]
    out = tmp_path / "status.json"
    assert main(["device", "status", "--home", home, "--json", str(out)]) == 0
    status = json.loads(out.read_text())
    assert status["command"] == "device status" and status["events"] == 1
    assert {"version", "machine", "started", "rows"} <= set(status)


@pytest.mark.parametrize(
    ("words", "status", "complaint"),
    [
        (["status"], 2, "is not a device's home"),
        (["event", "--item", "7"], 2, "and --label or --rating"),
        (["event", "--item", "7", "--label", "3"], 2, "between 0 and 1"),
        (["run"], 2, "is not enrolled yet"),
        (["run", "--server", "http://127.0.0.1:1"], 2, "go together"),
        (["run", "--server", "nonsense", "--trust", "ab" * 32], 2, "http"),
        (["run", "--server", "http://127.0.0.1:1", "--trust", "no such file"], 2, "64 hex digits, a file"),
    ],
)
def test_mistakes_get_one_sentence_and_a_status(tmp_path, capsys, words, status, complaint):
    assert main(["device", words[0], "--home", str(tmp_path / "phone"), *words[1:]]) == status
    said = capsys.readouterr().err
    assert said.startswith("coda: ") and complaint in said and "Traceback" not in said


def test_erasing_asks_first_and_then_leaves_nothing(tmp_path, capsys):
    home = tmp_path / "phone"
    main(["device", "event", "--home", str(home), "--item", "7", "--label", "1"])
    assert main(["device", "erase", "--home", str(home)]) == 2
    assert "would delete 1 events" in capsys.readouterr().err and home.exists()
    (home / "coda.db").write_bytes(b"damaged")
    assert main(["device", "erase", "--home", str(home), "--yes"]) == 0, "a damaged one can be erased as well"
    assert not home.exists()


def test_what_should_not_happen_is_said_in_a_line_unless_asked_for_more(tmp_path, capsys, monkeypatch):
    def broken(_):
        raise RuntimeError("impossible")

    monkeypatch.setattr("device_runtime.commands.device.Command.run", staticmethod(broken))
    words = ["device", "status", "--home", str(tmp_path)]
    assert main(words) == 1
    quiet = capsys.readouterr().err
    assert "RuntimeError: impossible" in quiet and "--debug" in quiet and "Traceback" not in quiet
    assert main([*words, "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_what_the_app_saw_is_taken_in_one_by_one_or_by_the_file(tmp_path, capsys):
    home = str(tmp_path / "phone")
    words = ["device", "event", "--home", home]
    assert main([*words, "--kind", "click", "--item", "7", "--page", "p", "--timestamp", "100"]) == 0
    lines = tmp_path / "events.jsonl"
    lines.write_text(
        '{"kind":"click","at_ms":100000,"item":"7","page":"p"}\n{"kind":"page_exit","at_ms":100500,"page":"p"}\n'
        '{"kind":"swipe","at_ms":5}\nnot JSON\n{"kind":"click","at_ms":1,"item":"7","colour":"red"}\n'
    )
    assert main([*words, "--from", str(lines)]) == 0
    told = capsys.readouterr()
    assert "1 new events, 1 already known, 3 bad lines" in told.out
    assert "line 3: an event's kind is one of" in told.err and "colour" in told.err
    assert main([*words, "--kind", "click"]) == 2
    assert "has an item" in capsys.readouterr().err
    assert main([*words, "--from", str(tmp_path / "none")]) == 2


def test_everything_about_the_user_can_be_taken_along(tmp_path, capsys):
    home, out = tmp_path / "phone", tmp_path / "mine"
    main(["device", "event", "--home", str(home), "--item", "7", "--label", "1", "--timestamp", "100"])
    main(["device", "event", "--home", str(home), "--kind", "click", "--item", "8", "--timestamp", "200"])
    assert main(["device", "export", "--home", str(home), "--out", str(out)]) == 0
    assert "1 samples, 1 events, 0 rounds" in capsys.readouterr().out
    assert json.loads((out / "events.jsonl").read_text())["item"] == "8"
    assert main(["device", "import", "--home", str(tmp_path / "next"), str(out / "samples.jsonl")]) == 0
    assert main(["device", "event", "--home", str(tmp_path / "next"), "--from", str(out / "events.jsonl")]) == 0
    assert "1 new events" in capsys.readouterr().out
    assert main(["device", "export", "--home", str(home), "--out", str(out)]) == 2, "nothing is written over"
    assert out.stat().st_mode & 0o077 == 0, "it is for the user's eyes"


def test_repair_and_conditions_say_what_they_find(tmp_path, capsys):
    home = str(tmp_path / "phone")
    main(["device", "event", "--home", home, "--item", "7", "--label", "1"])
    assert main(["device", "repair", "--home", home]) == 0
    assert "nothing is damaged" in capsys.readouterr().out
    assert main(["device", "repair", "--home", str(tmp_path / "none")]) == 2
    out = tmp_path / "conditions.json"
    assert main(["device", "conditions", "--home", home, "--json", str(out)]) == 0
    told = capsys.readouterr().out
    assert "battery percent" in told and "round may run" in told
    assert set(json.loads(out.read_text())) >= {"conditions", "used_today", "refusals", "policy"}
    (tmp_path / "phone" / "policy.json").write_text("{")
    assert main(["device", "agent", "--home", home]) == 2
    assert main(["device", "agent", "--home", str(tmp_path / "none")]) == 2
