"""Types that users register with the codec."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from aiorpcq.codec import MsgpackCodec
from aiorpcq.errors import CodecError

from .values import SECRET, Admin, Level, User, unencodable, with_users


def test_a_registered_type_arrives() -> None:
    codec = with_users()
    arrived = codec.decode(codec.encode({"who": (User("ann"),)}))["who"][0]
    assert (type(arrived), arrived.name) == (User, "ann")


def test_a_registered_encoder_may_return_other_extensions() -> None:
    codec = with_users(lambda user: (user.name, {1}), lambda plain: User(plain[0]))
    assert codec.decode(codec.encode(User("ann"))).name == "ann"


def test_a_registered_encoder_may_use_the_codec_itself() -> None:
    codec = MsgpackCodec()
    codec.register(User, 64, lambda user: codec.encode((user.name,)), lambda body: User(codec.decode(body)[0]))
    assert [user.name for user in codec.decode(codec.encode([1, User("ann"), User("bob")]))[1:]] == ["ann", "bob"]


def test_a_subclass_of_a_registered_type_goes_as_its_base() -> None:
    codec = with_users()
    assert type(codec.decode(codec.encode(Admin("ann")))) is User


def test_the_exact_type_comes_before_its_base() -> None:
    codec = with_users()
    assert isinstance(codec, MsgpackCodec)
    codec.register(Admin, 65, lambda admin: admin.name, Admin)
    assert type(codec.decode(codec.encode(Admin("ann")))) is Admin


def test_a_subclass_of_a_carried_type_can_be_registered() -> None:
    codec = MsgpackCodec()
    codec.register(Level, 70, int, Level)
    assert codec.decode(codec.encode([Level.LOW]))[0] is Level.LOW


def test_an_encoder_that_raises_is_a_codec_error_from_it() -> None:
    codec = with_users(encode=lambda user: 1 / 0)
    with pytest.raises(CodecError, match=r"encoder registered for .*User raised ZeroDivisionError") as caught:
        codec.encode([User(SECRET)])
    assert type(caught.value.__cause__) is ZeroDivisionError


def test_a_decoder_that_raises_is_a_codec_error_from_it() -> None:
    def fail(plain: Any) -> User:
        raise KeyError(plain)

    codec = with_users(decode=fail)
    with pytest.raises(CodecError, match=r"decoder registered for .*User raised KeyError") as caught:
        codec.decode(codec.encode([User(SECRET)]))
    assert type(caught.value.__cause__) is KeyError
    assert SECRET not in str(caught.value)


def test_an_encoder_that_returns_its_own_value_is_refused() -> None:
    unencodable(with_users(encode=lambda user: user), User("ann"))


@pytest.mark.parametrize("code", [-1, 0, 63, 128, True, "64"])
def test_a_code_outside_the_users_range_is_refused(code: Any) -> None:
    with pytest.raises(ValueError, match="code must be an int from 64 to 127"):
        MsgpackCodec().register(User, code, str, User)


def test_a_taken_code_is_refused() -> None:
    codec = with_users()
    assert isinstance(codec, MsgpackCodec)
    with pytest.raises(ValueError, match=r"code 64 is taken by .*User"):
        codec.register(Admin, 64, str, Admin)


@pytest.mark.parametrize("cls", [User, int, list, datetime, type(None)])
def test_a_type_that_is_carried_already_is_refused(cls: type) -> None:
    codec = with_users()
    assert isinstance(codec, MsgpackCodec)
    with pytest.raises(ValueError, match="carried or registered already"):
        codec.register(cls, 65, str, str)
