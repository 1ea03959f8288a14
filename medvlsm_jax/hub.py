"""Files of the Hugging Face hub, through its local cache; where no network is, that is known within seconds.

The library asks six times, and waits longer each time, before it says that a host cannot be reached: 23 s a file.
So whether it can is asked first, once.
"""

import functools
import socket
import threading
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

TIMEOUT = 4.0  # seconds


@functools.cache
def is_reachable() -> bool:
    """Whether the hub can be connected to, asked once a process; where a proxy is set, it is taken to be."""
    from huggingface_hub import constants

    url = urlsplit(constants.ENDPOINT)
    if constants.HF_HUB_OFFLINE:
        return False
    if urllib.request.getproxies().get(url.scheme):
        return True
    answers: list[bool] = []

    def connect() -> None:
        address = (url.hostname or "", url.port or (443 if url.scheme == "https" else 80))
        try:
            socket.create_connection(address, TIMEOUT).close()
            answers.append(True)
        except OSError:
            answers.append(False)

    # A thread, for asking for the host's address knows no time-out, and each of its addresses has one of its own.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(TIMEOUT)
    return bool(answers and answers[0])


def fetch(hub_id: str, name: str) -> Path | None:
    """A file of a repository, from the cache where the hub is not reached; None where the repository has none such.

    Raises:
        OSError: it is not in the cache and cannot be fetched, or there is no such repository.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(hub_id, name, etag_timeout=TIMEOUT, local_files_only=not is_reachable()))
    except LocalEntryNotFoundError:
        raise
    except EntryNotFoundError:
        return None
    except HFValidationError as error:
        raise OSError(str(error)) from error
