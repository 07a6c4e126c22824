import traceback

import pytest
from torch._utils import ExceptionWrapper

from kikitori.runtime.errors import ConfigError, DataError, describe_error, one_line, shortened


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("wrong\nat line 2"), "wrong"),
        (ValueError("\n  wrong \n"), "wrong"),
        (ValueError(), "ValueError"),
        (KeyError(" "), "' '"),
        (RuntimeError(" \n"), "RuntimeError"),
        (DataError("a.csv is empty\n  Fill it."), "a.csv is empty"),
    ],
)
def test_an_error_in_one_line_is_the_first_of_its_message_or_its_class(error: Exception, line: str) -> None:
    assert one_line(error) == line


def test_python_prints_the_class_of_an_error_once() -> None:
    error = ConfigError("optim.lr=abc: must be a number")
    assert traceback.format_exception_only(error) == [f"kikitori.runtime.errors.{describe_error(error)}\n"]
    assert describe_error(error) == "ConfigError: optim.lr=abc: must be a number"
    assert describe_error(KeyboardInterrupt()) == "KeyboardInterrupt: stopped"


def test_control_characters_do_not_reach_the_screen() -> None:
    message = str(DataError("a\0b \x1b[2J\x9b \u202e.mp3\r\tend\nnext"))
    assert message == "a\\x00b \\x1b[2J\\x9b \\u202e.mp3\\r\\tend\nnext"


def test_a_file_name_that_is_not_utf_8_can_be_printed() -> None:
    assert str(DataError("caf\udce9.mp3 is missing")) == "caf\\udce9.mp3 is missing"


def test_an_error_of_a_loader_worker_has_its_own_message_only() -> None:
    try:
        raise DataError("a.mp3: no label")
    except DataError:
        wrapped = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(DataError) as caught:
        wrapped.reraise()
    assert describe_error(caught.value) == "DataError: a.mp3: no label"


def test_of_many_names_a_few_are_given() -> None:
    names = [f"{number}.mp3" for number in range(16)]
    assert shortened(names) == "0.mp3, 1.mp3, 2.mp3 and 13 more"
    assert shortened(names[:3]) == "0.mp3, 1.mp3, 2.mp3"
    assert shortened([]) == ""
