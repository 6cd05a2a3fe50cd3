"""Which errors one line tells better than a traceback, and that line.

These are mistakes in the configuration, as long as nothing has been worked on, whoever refuses them; and at any time
what is wrong with the machine: its disks, its memory, its connections. What else is raised is a fault of the program.
"""

from __future__ import annotations

import dis
import errno
import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from json import JSONDecodeError
from pathlib import Path
from pickle import UnpicklingError
from types import FrameType, TracebackType
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from safetensors import SafetensorError
from yaml import YAMLError

from sparsight.command.config_keys import named_key, place_of
from sparsight.command.startup import PLUGINS
from sparsight.common.errors import CheckpointError, Told, chain
from sparsight.common.measure.memory import is_out_of_memory

TRACEBACK = "SPARSIGHT_TRACEBACK"
OURS = tuple(str(Path(__file__).parents[2] / name) + os.sep for name in ("sparsight", *PLUGINS))
NETWORK = ("huggingface_hub", "requests", "httpx", "httpcore", "urllib3", "aiohttp", "fsspec")
OF_CONTENT = (SafetensorError, YAMLError, UnicodeDecodeError, UnpicklingError, EOFError, zipfile.BadZipFile, zlib.error)
ON_PURPOSE = (ValueError, TypeError, RuntimeError, ImportError, OSError, KeyError)  # what libraries refuse with
NO_DEVICE = re.compile(
    r"Found no NVIDIA driver|Torch not compiled with CUDA|No CUDA GPUs are available|invalid device ordinal|driver on "
    r"your system is too old|Invalid device string|Expected one of cpu, cuda"
)
NUMBER = re.compile(r"\[Errno (\d+)\]|os error (\d+)")
LOADER_DIED = re.compile(r"DataLoader worker \(pid\(?s?\)? [\d, ]+\) (exited unexpectedly|is killed)")
REMEDIES = {
    errno.ENOSPC: "free some space, or write to another disk",
    errno.EDQUOT: "free some space, or write to another disk",
    errno.EFBIG: "the file system, or `ulimit -f`, allows no larger file: write elsewhere",
    errno.EROFS: "write elsewhere",
    errno.EACCES: "write elsewhere, or change who may",
    errno.EPERM: "write elsewhere, or change who may",
    errno.ENAMETOOLONG: "give a shorter path",
    errno.ENOENT: "see that it is there",
    errno.ENOTDIR: "a part of this path is a file: give another one",
    errno.EISDIR: "this is a folder: name a file",
    errno.EMFILE: "raise `ulimit -n`, or lower num_workers",
    errno.ENOMEM: "lower batch_size or num_workers",
    errno.EIO: "see to the disk",
    errno.ESTALE: "see to the network disk",
    errno.EADDRINUSE: "set MASTER_PORT to another one",
}
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def in_one_line(error: BaseException, *, begun: bool, config: Any = None) -> str | None:
    """What to say of an error in place of its traceback; none where the traceback is what is needed.

    Args:
        error: That ended the command.
        begun: Whether any batch was worked on.
        config: Configuration of the verb, as far as it was read.
    """
    if os.environ.get(TRACEBACK):
        return None
    error = _said_by_class(error)
    if isinstance(error, CheckpointError):  # which names file, reason and remedy already
        return str(error)
    fault = _machine_fault(error)
    if fault is not None:
        return " ".join(fault.split())
    of_parser = config is None and not raised_by_us(error)  # whatever it stumbled over stands in the configuration
    if not (is_mistake(error) if begun else is_refusal(error) or of_parser):
        return None
    text = named_key(_with_file(error), place_of(error.__traceback__, config), error)
    if raised_by_us(error) or isinstance(error, Told):
        return text
    return f"{' '.join(text.split())} (from {_library(error)}; {TRACEBACK}=1 shows where)"


def is_mistake(error: BaseException) -> bool:
    """Whether an error is the configuration's or the data's fault, also after work has begun."""
    return isinstance(error, (Told, MisconfigurationException)) or (
        _raised_in(error).startswith(_folder("lightning")) and _on_purpose(error)
    )


def is_refusal(error: BaseException) -> bool:
    """Whether an error before the first batch is the configuration's fault."""
    if is_mistake(error) or isinstance(error, (FileNotFoundError, ImportError, *OF_CONTENT)):
        return True
    if NO_DEVICE.search(str(error)):
        return True
    return _on_purpose(error) and (isinstance(error, ValueError) or not raised_by_us(error))


def raised_by_us(error: BaseException) -> bool:
    """Whether our own code raised it."""
    return _raised_in(error).startswith(OURS)


def _on_purpose(error: BaseException) -> bool:
    """Whether the line that raised an error says ``raise``: it was foreseen."""
    trace = _innermost(error)
    return (
        isinstance(error, ON_PURPOSE)
        and trace is not None
        and dis.opname[trace.tb_frame.f_code.co_code[trace.tb_lasti]] == "RAISE_VARARGS"
    )


def _machine_fault(error: BaseException) -> str | None:
    """What is wrong with disk, memory or connection, and what helps; none if nothing is."""
    for each in chain(error):
        number = _number(each)
        if number in FULL or (each is error and number is not None):
            reason = os.strerror(number) if number > 0 else str(each)
            remedy = REMEDIES.get(number, "")
            return f"{_file_of(each) or _file_of(error) or 'a file'}: {reason}{remedy and f': {remedy}'}"
    text = _last_line(error)
    if isinstance(error, MemoryError) or is_out_of_memory(error):
        return f"out of memory: {text or 'main memory'}: lower batch_size, or use gradient checkpointing or offloading"
    if LOADER_DIED.search(text) and "signal: Terminated" in text:
        return f"{text.rstrip('.')}: the run was stopped from outside, as by a time limit"
    if LOADER_DIED.search(text):
        return f"{text}: most likely memory ran out: lower num_workers or batch_size"
    if any(kind.__module__.partition(".")[0].rstrip("0123456789") in NETWORK for kind in type(error).__mro__):
        return f"{text}: see to the connection, HF_ENDPOINT and HF_TOKEN, or use what is here with HF_HUB_OFFLINE=1"
    if isinstance(error, (torch.distributed.DistBackendError, torch.distributed.DistNetworkError)):
        return f"processes lost each other: {text}"
    return None


def _number(error: BaseException) -> int | None:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    if isinstance(error, Told):  # also where a loader process raised it, which raises it here from torch's code
        return None
    if isinstance(error, (OSError, RuntimeError, SafetensorError)) and not raised_by_us(error):
        told = NUMBER.search(_last_line(error))  # libraries in other languages keep no more than the text
        return int(told[1] or told[2]) if told else None
    return None


def _with_file(error: BaseException) -> str:
    """The message, with the file whose content could not be read."""
    text = _last_line(error)
    file = _file_of(error) if isinstance(error, (*OF_CONTENT, ValueError)) and _of_content(error) else None
    if file is None or file in text:
        return text or type(error).__name__
    return f"{file} is damaged or of another kind: {text}"


def _of_content(error: BaseException) -> bool:
    return isinstance(error, (*OF_CONTENT, JSONDecodeError))


def _last_line(error: BaseException) -> str:
    """The message; of an error in a loader process, which comes as a whole traceback, its last line."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines or "Original Traceback" not in text:
        return text.strip()
    kind = type(error)
    return lines[-1].removeprefix(f"{kind.__module__}.{kind.__qualname__}: ") if isinstance(error, Told) else lines[-1]


def _file_of(error: BaseException) -> str | None:
    """The file that an error is about: its own, or the one that the innermost function was working on."""
    if isinstance(error, OSError) and error.filename is not None:
        return os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else str(error.filename)
    for frame in reversed(list(_frames(error.__traceback__))):
        for name, value in frame.f_locals.items():
            if name.lower().endswith(("path", "file", "filename", "part")) and _is_file_name(value):
                return str(value)
    return None


def _is_file_name(value: object) -> bool:
    if not isinstance(value, (str, Path)) or len(str(value)) > 1000 or "\n" in str(value):
        return False
    return bool(Path(value).suffix) and not str(value).endswith(".py")


def _said_by_class(error: BaseException) -> BaseException:
    """The error that a class raised, out of what the parser says about it and about every other type it tried."""
    found = error
    while "jsonargparse" in _raised_in(found) and (found.__cause__ or found.__context__) is not None:
        found = found.__cause__ or found.__context__ or found
    return found


def _frames(trace: TracebackType | None) -> Iterator[FrameType]:
    while trace is not None:
        yield trace.tb_frame
        trace = trace.tb_next


def _innermost(error: BaseException) -> TracebackType | None:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace


def _raised_in(error: BaseException) -> str:
    trace = _innermost(error)
    return "" if trace is None else trace.tb_frame.f_code.co_filename


def _library(error: BaseException) -> str:
    trace = _innermost(error)
    name = "" if trace is None else str(trace.tb_frame.f_globals.get("__name__", ""))
    return name.partition(".")[0] or "the system"


def _folder(package: str) -> str:
    return str(Path(str(__import__(package).__file__)).parent) + os.sep
