"""Check that the number of threads is measured once and remembered, and that a failure costs the user nothing."""

import json

import platformdirs
import pytest
import torch

from tinystory.decoding import Decoder
from tinystory.session import threads
from tinystory.session.loading import load
from tinystory.studio.backend import ModelBackend
from tinystory.writing.generate import StoryRequest
from tinystory_decoders.greedy import Greedy

LARGE, SMALL = 100_000_000, 3_000_000


class Clocked:
    """A session whose steps take a given number of seconds for each number of threads."""

    vocab_size = 50_000

    def __init__(self, seconds):
        self.seconds, self.now, self.steps = seconds, 0.0, 0

    def open(self):
        return self

    def prefill(self, prompts):
        assert prompts == [[0]]

    def decode(self, token_ids):
        self.steps += 1
        self.now += self.seconds[torch.get_num_threads()]

    def clock(self):
        return self.now


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Give a machine with at most eight threads, its own cache folder, and a clock that the session moves."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: tmp_path / "cache")
    now = [8]
    monkeypatch.setattr(torch, "get_num_threads", lambda: now[0])
    monkeypatch.setattr(torch, "set_num_threads", lambda n: now.__setitem__(0, n))

    def choose(session, n_parameters=LARGE, dtype="float32"):
        monkeypatch.setattr(threads.fastest, "__defaults__", (session.clock,))
        n_threads = threads.choose_threads(session, n_parameters, dtype)
        assert now[0] == n_threads
        return n_threads

    choose.file = tmp_path / "cache" / "threads.json"
    threads._most.cache_clear()
    yield choose
    threads._most.cache_clear()


def test_the_fastest_number_is_taken_and_remembered(machine):
    assert machine(Clocked({1: 1.0, 2: 0.6, 4: 0.4, 8: 0.5})) == 4
    again = Clocked({1: 1.0, 2: 1.0, 4: 1.0, 8: 1.0})
    assert machine(again) == 4
    assert again.steps == 0
    # Other keys, so measured again. Models that only transformers runs once had only their vocabulary in the key.
    assert machine(again, dtype="int8") == 1
    assert machine(again, n_parameters=2 * LARGE) == 1
    assert list(json.loads(machine.file.read_text()).values()) == [4, 1, 1]


def test_a_little_faster_is_not_worth_other_threads(machine):
    assert machine(Clocked({1: 1.0, 2: 0.95, 4: 0.93, 8: 0.91})) == 1


@pytest.mark.parametrize("content", ["{", "[]", '{"x": 1}'])
def test_a_damaged_memory_is_measured_anew(machine, content):
    machine.file.parent.mkdir()
    machine.file.write_text(content)
    assert machine(Clocked({1: 1.0, 2: 0.5, 4: 0.5, 8: 0.5})) == 2


@pytest.mark.parametrize("known", [64, 0, True, "2"])
def test_a_number_that_this_computer_has_not_is_measured_anew(machine, known):
    session = Clocked({1: 1.0, 2: 0.5, 4: 0.5, 8: 0.5})
    assert machine(session) == 2
    (key,) = json.loads(machine.file.read_text())
    machine.file.write_text(json.dumps({key: known}))
    assert machine(session) == 2


def test_where_nothing_can_be_written_it_is_measured_each_time(machine):
    machine.file.parent.write_text("a file where the folder should be")
    for _ in range(2):
        session = Clocked({1: 1.0, 2: 0.5, 4: 0.5, 8: 0.5})
        assert machine(session) == 2
        assert session.steps > 0


def test_small_models_and_the_users_own_number(machine, monkeypatch):
    session = Clocked({})
    assert machine(session, SMALL) == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert machine(session) == 8
    assert session.steps == 0


def test_a_large_model_after_a_small_one_has_all_threads_to_choose_from(machine):
    """The small model had left torch at one thread, and this was taken for the number of the computer."""
    assert machine(Clocked({}), SMALL) == 1
    assert machine(Clocked({1: 1.0, 2: 0.6, 4: 0.4, 8: 0.5})) == 4


@pytest.fixture
def four_threads(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(1)
    threads._most.cache_clear()


def test_a_second_model_leaves_the_threads_alone(four_threads):
    """A draft model of a million parameters once left the main model only one thread."""
    model = load("mini")
    torch.set_num_threads(4)
    model.session.open("default-0.6M")
    assert torch.get_num_threads() == 4


def test_the_studio_writes_with_its_models_threads(four_threads):
    """Torch has a number for each thread of Python; the studio loads in one and writes in another."""
    backend = ModelBackend.open("mini", "float32", "cpu")
    assert backend.wait(lambda: False)
    torch.set_num_threads(4)
    next(iter(backend.write([StoryRequest("Tim", Decoder((), Greedy()), seed=1, max_new_tokens=1)])))
    assert torch.get_num_threads() == 1
