# SPDX-License-Identifier: Apache-2.0
"""The fsspec file system of a URL, and what its errors mean: missing, refused, or no answer."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

from ahpa_scale.errors import UserError
from ahpa_scale.storage.urls import scheme
from ahpa_scale.unreachable import UnreachableError, causes

#: Extras of this package by URL scheme; s3 comes with every install.
EXTRAS = {"gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure", "adl": "azure"}
_BACK_ENDS = {
    *("adlfs", "aiobotocore", "aiohttp", "azure", "boto3", "botocore", "fsspec", "gcsfs", "google"),
    *("huggingface_hub", "paramiko", "requests", "s3fs", "s3transfer", "urllib3"),
}
#: Seconds until an address that drops all packets counts as not answering.
_CONNECT_SECONDS = 10
#: Seconds for an answer, including the upload; s3fs' own 15 are too few for slow lines.
_ANSWER_SECONDS = 60
#: The client's own attempts at a request; `patience` does the rest.
_CLIENT_ATTEMPTS = 2
_NO_BUCKET = {"NoSuchBucket", "ContainerNotFound", "FilesystemNotFound"}
#: gcsfs reports a missing bucket only by the path that it asked for.
_BUCKET_OF_GCS = re.compile(r"b/[^/]+(/o)?")
#: Codes for data that the connection damaged or the store lost: the next attempt can succeed.
_SPOILT = {
    *("BadDigest", "IncompleteBody", "InvalidPart", "NoSuchUpload", "OperationAborted"),
    *("RequestTimeout", "SlowDown", "XAmzContentSHA256Mismatch"),
}
_PASSING = {
    *(HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.CONFLICT, HTTPStatus.LOCKED, HTTPStatus.TOO_EARLY),
    HTTPStatus.TOO_MANY_REQUESTS,
}
_GONE = {HTTPStatus.NOT_FOUND, HTTPStatus.GONE}
#: Network errors for which Python has no class.
_NETWORK = {
    *(errno.EHOSTUNREACH, errno.EHOSTDOWN, errno.ENETUNREACH, errno.ENETDOWN, errno.ENETRESET),
    errno.ETIMEDOUT,
}
#: Words in the names of back ends' errors that blame a missing or wrong setting.
_SETTING = re.compile("Auth|Config|Credential|InvalidU|Offline|Param|Profile|Refresh|Region|Token")
#: TLS errors of a port that speaks http, not https.
_NO_TLS = {"HTTP_REQUEST", "WRONG_VERSION_NUMBER"}
#: Never freed: a forked process would otherwise close its parent's connections, in an event loop
#: that it doesn't have, and print a traceback about that.
_opened: set[Any] = set()
_MISSING, _REFUSED, _AWAY, _LOCAL = "missing", "refused", "away", "local"


class RefusedError(OSError, UserError):
    """A store refused: no permission, bucket or valid credentials. Waiting does not help."""


def open_store(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it. The file system sees other processes'
    writes at once.

    Raises:
        UserError: unknown scheme, its package is not installed, or a setting that does not fit.
    """
    try:
        from fsspec.core import url_to_fs

        # sftp would pass the option on to ssh, which does not know it.
        options: dict[str, Any] = {} if scheme(url) == "sftp" else {"use_listings_cache": False}
        options |= {"s3": _s3_options()} if _of_s3(url) else {}
        filesystem, path = url_to_fs(url, **options)
    except ImportError as error:
        kind = scheme(url)
        extra = EXTRAS.get(kind)
        advice = f"pip install 'ahpa-scale[{extra}]'" if extra else str(error)
        raise UserError(f"{url}: {kind}:// needs a package that is not here: {advice}") from error
    except ValueError as error:
        if "Protocol not known" in str(error):
            known = "s3://, gs://, az:// or a local path"
            text = f"unknown storage scheme {scheme(url)}:// in {url}; use {known}"
            raise UserError(text) from error
        raise RefusedError(f"cannot use {url}: {_text(error)}") from error
    _limit_attempts(filesystem)
    _opened.add(filesystem)
    return filesystem, path


def _limit_attempts(filesystem: Any) -> None:
    if hasattr(filesystem, "retries"):
        filesystem.retries = min(filesystem.retries, _CLIENT_ATTEMPTS)
    azure = getattr(filesystem, "service_client", None)
    if azure is not None:  # adlfs has no option for it, and Azure's pauses grow beyond 15 s
        azure._config.retry_policy.total_retries = _CLIENT_ATTEMPTS - 1
        azure._config.retry_policy.initial_backoff = 0


def _of_s3(url: str) -> bool:
    return any(link.startswith("s3://") for link in url.split("::"))


def _s3_options() -> dict[str, Any]:
    options: dict[str, Any] = {
        "use_listings_cache": False,
        "config_kwargs": {"connect_timeout": _CONNECT_SECONDS, "read_timeout": _ANSWER_SECONDS},
    }
    # Composer and streaming read this variable; s3fs by itself does not.
    endpoint = os.environ.get("S3_ENDPOINT_URL")
    if endpoint:
        if not endpoint.startswith(("http://", "https://")):
            right = f"https://{endpoint.rpartition('://')[2]}"
            raise UserError(f"S3_ENDPOINT_URL is {endpoint!r}: write {right}, or http:// in front")
        options["client_kwargs"] = {"endpoint_url": endpoint}
    return options


@contextmanager
def clear_errors(url: str | os.PathLike[str]) -> Iterator[None]:
    """Turn errors of fsspec's back ends into one line that names the URL. Other errors, such as a
    full local disk or a bug of ours, pass unchanged.

    Raises:
        FileNotFoundError: nothing of this name is there.
        RefusedError: the store said no.
        UnreachableError: the store does not answer, or says that it can't for now.
    """
    try:
        yield
    except (UnreachableError, RefusedError):
        raise
    except Exception as error:
        if not _of_a_store(error):
            raise
        kind, cause = _judge(error)
        if kind == _LOCAL:
            raise
        if kind == _MISSING:
            raise FileNotFoundError(f"nothing at {url}") from error
        if kind == _REFUSED:
            raise RefusedError(f"cannot use {url}: {_text(cause)}") from error
        raise UnreachableError(f"{url} does not answer: {_text(cause)}") from error


def _of_a_store(error: BaseException) -> bool:
    kinds = (OSError, TimeoutError, asyncio.TimeoutError, NotImplementedError)
    if isinstance(error, kinds) or _of_a_back_end(error):
        return True
    return isinstance(error, ValueError) and _raised_in_a_back_end(error)


def _of_a_back_end(error: BaseException) -> bool:
    return any(base.__module__.split(".")[0] in _BACK_ENDS for base in type(error).__mro__)


def _raised_in_a_back_end(error: BaseException) -> bool:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    name = "" if trace is None else str(trace.tb_frame.f_globals.get("__name__", ""))
    return name.split(".")[0] in _BACK_ENDS


def _judge(error: BaseException) -> tuple[str, BaseException]:
    """What an error means, and the first of its causes that tells."""
    for cause in causes(error):
        kind = _kind(cause)
        if kind is not None:
            return kind, cause
    if isinstance(error, FileNotFoundError):
        return _MISSING, error
    refused = isinstance(error, PermissionError | NotImplementedError | ValueError)
    return (_REFUSED if refused else _AWAY), error


def _kind(error: BaseException) -> str | None:
    """What one error means by itself; None if only its cause can tell."""
    code, status = _answer(error)
    gcs = isinstance(error, FileNotFoundError) and _BUCKET_OF_GCS.fullmatch(str(error))
    if code in _NO_BUCKET or gcs or str(error).startswith("Forbidden:"):
        return _REFUSED
    if code in _SPOILT:
        return _AWAY
    if status:
        return _kind_of_status(status)
    if _is_a_setting(error):
        return _REFUSED
    passing = (ConnectionError, TimeoutError, asyncio.TimeoutError, socket.gaierror, ssl.SSLError)
    if isinstance(error, passing) or getattr(error, "errno", None) in _NETWORK:
        return _AWAY
    if _of_a_back_end(error):
        return _REFUSED if any(map(_is_a_setting, causes(error))) else _AWAY
    # s3fs gives its own errors an errno too; these have a cause.
    numbered = isinstance(error, OSError) and error.errno is not None
    if numbered and not isinstance(error, FileNotFoundError) and error.__cause__ is None:
        return _LOCAL
    if isinstance(error, FileNotFoundError) and os.path.isabs(str(error.filename or "")):
        return _LOCAL
    return None


def _is_a_setting(error: BaseException) -> bool:
    """Whether a missing or wrong setting kept the request from being sent or understood."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return True
    if isinstance(error, ssl.SSLError):  # aiohttp's version has no reason
        return getattr(error, "reason", None) in _NO_TLS
    return _of_a_back_end(error) and _SETTING.search(type(error).__name__) is not None


def _answer(error: BaseException) -> tuple[str, int]:
    """A store's own code and the HTTP status, if an error holds them."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        told = response.get("Error", {}).get("Code", "")
        return str(told), int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    code = str(getattr(error, "error_code", "") or "")  # azure
    for holder, name in (
        (response, "status_code"),  # requests
        (error, "status_code"),  # azure
        (error, "status"),  # aiohttp
        (error, "code"),  # gcsfs
    ):
        status = str(getattr(holder, name, "") or "")
        if status.isdecimal():
            return code, int(status)
    return code, 0


def _kind_of_status(status: int) -> str:
    if status in _GONE:
        return _MISSING
    if status in _PASSING or (status >= 500 and status != HTTPStatus.NOT_IMPLEMENTED):
        return _AWAY
    return _REFUSED


def _text(error: BaseException) -> str:
    # Azure's errors go on with the whole answer.
    told = str(error).partition("\nRequestId:")[0]
    return " ".join(told.split()) or type(error).__name__
