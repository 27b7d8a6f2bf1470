"""What becomes of users and passwords in addresses."""

import pytest

from utils.addresses import without_passwords

SHOWN = {
    "https://me:secret@host": "https://***@host",
    "https://token@host:5000/x": "https://***@host:5000/x",
    "say 'postgresql+psycopg2://me:p@ss@h/db' twice: http://a:b@c": "say 'postgresql+psycopg2://***@h/db' twice: http://***@c",
    "mysql://me:p/s?s@h/db": "mysql://***@h/db",  # against the rules, but databases take it
}
AS_IT_IS = ("sqlite:////a/b@c.db", "http://h:5000/model@2", "http://h/x?to=a@b", "me@host", "https://h", "a: b@c", "")


@pytest.mark.parametrize("text", SHOWN)
def test_users_and_passwords_are_left_out(text):
    assert without_passwords(text) == SHOWN[text]


@pytest.mark.parametrize("text", AS_IT_IS)
def test_other_texts_stay(text):
    assert without_passwords(text) == text
