"""ResumeState: event files are cut to what they were; the fits of tests/lightning_app/test_resume.py show the rest."""

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from callbacks.resume_state import EVENT_FILES, ResumeState, cut_events


def read(folder: Path) -> list[tuple[int, float]]:
    return [(each.step, each.value) for each in EventAccumulator(str(folder)).Reload().Scalars("loss")]


def test_what_was_logged_after_the_state_is_cut_off_and_gone_on_with(tmp_path: Path) -> None:
    writer = SummaryWriter(str(tmp_path))
    for step in range(3):
        writer.add_scalar("loss", step / 2, step)
    writer.flush()
    (file,) = tmp_path.glob(EVENT_FILES)
    length = file.stat().st_size
    for step in range(3, 6):
        writer.add_scalar("loss", 9.0, step)
    writer.close()
    (tmp_path / "events.out.tfevents.9999999999.later").write_bytes(b"of a process that saved nothing")
    (tmp_path / "events.out.tfevents.report").write_bytes(b"of another step of the run")
    with file.open("ab") as stream:
        stream.write(b"half a rec")
    cut_events(tmp_path, {file.name: length})
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted([file.name, "events.out.tfevents.report"])
    (tmp_path / "events.out.tfevents.report").unlink()
    assert read(tmp_path) == [(0, 0.0), (1, 0.5), (2, 1.0)]
    later = SummaryWriter(str(tmp_path), filename_suffix=".zz")
    later.add_scalar("loss", 1.5, 3)
    later.close()
    assert sorted(read(tmp_path)) == [(0, 0.0), (1, 0.5), (2, 1.0), (3, 1.5)]


def test_without_a_state_nothing_that_was_logged_is_kept(tmp_path: Path) -> None:
    SummaryWriter(str(tmp_path)).close()
    assert list(tmp_path.iterdir())
    cut_events(tmp_path, {})
    assert not list(tmp_path.iterdir())


def test_a_file_that_lost_its_end_stays_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "events.out.tfevents.1.host"
    file.write_bytes(b"12345")
    cut_events(tmp_path, {file.name: 9})
    assert file.read_bytes() == b"12345"


def test_states_within_an_epoch_are_saved_when_asked_for(tmp_path: Path) -> None:
    assert not any(ResumeState(tmp_path).is_due(step) for step in range(20))
