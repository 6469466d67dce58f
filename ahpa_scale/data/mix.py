# SPDX-License-Identifier: Apache-2.0
"""Several data sets that are read as one: whether they fit, their shares and what is left out. Does
not import torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import reduce
from typing import Any

from ahpa_scale import storage
from ahpa_scale.data.card import DatasetCard, read_card
from ahpa_scale.data.identity import identity, labels_by_name
from ahpa_scale.errors import UserError

#: Facts of a card's identity that all sets share, and their names in messages.
_ALIKE = {
    "kind": "kind",
    "vae": "VAE",
    "image_size": "size of pictures",
    "latent_shape": "shape of latents",
    "grid": "token grid",
}
#: Most bytes of a skip list: about 25 million indices.
_LONGEST_LIST = 256 << 20


@dataclass(frozen=True)
class Wanted:
    """A set as a run names it.

    Attributes:
        url: its folder or URL.
        proportion: its share of each pass, relative to those of the others; None: by `repeat`.
        repeat: how often a pass reads it.
        skip: file or URL with indices to leave out, one a line; None: none.
    """

    url: str
    proportion: float | None = None
    repeat: float = 1.0
    skip: str | None = None


class MemberError(UserError):
    """What is wrong with one set of several.

    Attributes:
        place: its number, from 0.
        key: which of its facts: ``url`` or ``skip``.
    """

    def __init__(self, place: int, key: str, problem: str) -> None:
        super().__init__(problem)
        self.place, self.key = place, key


@dataclass(frozen=True)
class Member:
    """One set of several.

    Attributes:
        wanted: how the run names it.
        card: its own card.
        labels: the run's label for each of its labels; None if they are the same.
        skipped: indices of its samples that are left out, ascending.
    """

    wanted: Wanted
    card: DatasetCard
    labels: tuple[int, ...] | None = None
    skipped: tuple[int, ...] = ()

    @property
    def num_samples(self) -> int:
        """Samples that are read."""
        return self.card.num_samples - len(self.skipped)


@dataclass(frozen=True)
class MixCard(DatasetCard):
    """The card of several sets that are read as one. Classes and scaling are the first set's,
    levels those that all sets have, and `num_samples` counts what is not left out.

    Attributes:
        members: the sets.
    """

    members: tuple[Member, ...] = ()

    @property
    def mixture(self) -> dict[str, Any]:
        """What of a run's order a card alone does not tell, ready for JSON."""
        if len(self.members) == 1 and not self.members[0].skipped:
            wanted = self.members[0].wanted
            if wanted.proportion is not None or wanted.repeat == 1:
                return super().mixture
        return {
            "sets": [member.card.fingerprint for member in self.members],
            "shares": _told_shares(self.members),
            "skipped": [_told_skipped(member.skipped) for member in self.members],
        }


def read_mix(sets: Sequence[Wanted], unconditional: bool = False) -> MixCard:
    """Read the cards and skip lists of several sets, and fit them together.

    Args:
        sets: the sets, at least one.
        unconditional: whether labels play no part.

    Raises:
        MemberError: a set or a skip list is not there, is broken, or does not fit the first set.
        UnreachableError: a store does not answer.
    """
    members: list[Member] = []
    for place, wanted in enumerate(sets):
        try:
            card = read_card(wanted.url)
            labels = None
            if members:
                _check_alike(members[0], wanted.url, card)
                _check_new(members, wanted.url, card)
                labels = None if unconditional else _labels(members[0], wanted.url, card)
        except UserError as error:
            raise MemberError(place, "url", str(error)) from None
        try:
            skipped = () if wanted.skip is None else read_skipped(wanted.skip, card, wanted.url)
        except UserError as error:
            raise MemberError(place, "skip", str(error)) from None
        members.append(Member(wanted, card, labels, skipped))
    return _mixed(members)


def read_skipped(place: str, card: DatasetCard, url: str) -> tuple[int, ...]:
    """Read the indices of samples to leave out, ascending. Empty lines and what follows a `#` do
    not count.

    Args:
        place: file or URL of the list.
        card: card of the data set.
        url: the data set, for the message.

    Raises:
        UserError: there is no such file, a line is no index, or nothing would be left.
    """
    try:
        lines = storage.read_text(place, _LONGEST_LIST).splitlines()
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"there is no file {place}") from None
    except UnicodeDecodeError:
        raise UserError(f"{place} is no text: write the index of one sample a line") from None
    skipped = set()
    for number, line in enumerate(lines, start=1):
        word = line.partition("#")[0].strip()
        if not word:
            continue
        if not (word.isascii() and word.isdigit() and int(word) < card.num_samples):
            raise UserError(
                f"{place}, line {number}: {word[:40]!r} is no index of a sample of {url}; those "
                f"are 0 to {card.num_samples - 1}"
            )
        skipped.add(int(word))
    if len(skipped) == card.num_samples:
        raise UserError(f"{place} leaves out all {len(skipped)} samples of {url}")
    return tuple(sorted(skipped))


def counts(members: Sequence[Member]) -> list[int]:
    """Samples of each set in a pass. With proportions, a pass is as long as all sets together."""
    if members[0].wanted.proportion is None:
        return [int(member.wanted.repeat * member.num_samples) for member in members]
    total = sum(member.num_samples for member in members)
    shares = [member.wanted.proportion or 0.0 for member in members]
    exact = [total * share / sum(shares) for share in shares]
    whole = [int(each) for each in exact]
    most = sorted(range(len(exact)), key=lambda place: whole[place] - exact[place])
    for place in most[: total - sum(whole)]:
        whole[place] += 1
    return whole


def _check_alike(first: Member, url: str, card: DatasetCard) -> None:
    theirs, ours = identity(card), identity(first.card)
    for name, words in _ALIKE.items():
        if theirs[name] != ours[name]:
            raise UserError(
                f"{url} does not fit {first.wanted.url}: its {words} is {theirs[name]}, and that "
                f"of the other {ours[name]}; prepare it like the other one"
            )


def _check_new(members: Iterable[Member], url: str, card: DatasetCard) -> None:
    for member in members:
        if member.card.fingerprint == card.fingerprint:
            raise UserError(
                f"{url} is the same data set as {member.wanted.url}: name it once, with repeat"
            )


def _labels(first: Member, url: str, card: DatasetCard) -> tuple[int, ...] | None:
    whose = f"that the first set, {first.wanted.url}, has"
    labels = labels_by_name(first.card.classes, card.classes, url, whose)
    return None if labels is None else tuple(labels)


def _mixed(members: Sequence[Member]) -> MixCard:
    first, cards = members[0].card, [member.card for member in members]
    shared = {level for card in cards for level in card.levels}
    shared = reduce(set.intersection, (set(card.levels) for card in cards), shared)
    channels = {card.external_channels for card in cards}
    own = {field.name: getattr(first, field.name) for field in fields(DatasetCard)}
    mixed = MixCard(
        **own
        | {
            "num_samples": sum(member.num_samples for member in members),
            "levels": tuple(level for level in first.levels if level in shared),
            "external_channels": first.external_channels if len(channels) == 1 else None,
        }
        | _without_levels(cards),
        members=tuple(members),
    )
    if len(members) == 1:
        return mixed
    prints = ",".join(card.fingerprint for card in cards)
    return replace(mixed, fingerprint=hashlib.sha256(prints.encode()).hexdigest()[:16])


def _without_levels(cards: Sequence[DatasetCard]) -> dict[str, Any]:
    """Stored levels that different codecs have reduced are not alike."""
    if cards[0].kind != "latents" or len({card.codec for card in cards}) == 1:
        return {}
    return {"levels": (), "codec": None, "prior_dtype": "float16"}


def _told_shares(members: Sequence[Member]) -> str:
    shares = [member.wanted.proportion for member in members]
    if None in shares:
        return ":".join(f"{member.wanted.repeat:g}x" for member in members)
    total = sum(share or 0.0 for share in shares)
    return ":".join(f"{(share or 0.0) / total:.4g}" for share in shares)


def _told_skipped(skipped: Sequence[int]) -> str:
    digest = hashlib.sha256(",".join(map(str, skipped)).encode()).hexdigest()[:8]
    return f"{len(skipped)} pictures ({digest})" if skipped else "none"
