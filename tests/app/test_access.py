"""Who is let in, and what stays shut."""

import hashlib

import pytest
from starlette.datastructures import Headers
from toys import Toy, encoded, noise

from app.access import Access, AccessError, new_key, scope_of
from app.errors import PROBLEM_JSON
from app.settings import Settings

KEY, OTHER = "k" * 32, "o" * 32
PNG = encoded(noise())


def access(keys: str = "", **settings) -> Access:
    return Access(Settings(api_keys=keys, **settings))


def asked(gate: Access, method: str, path: str, **headers: str) -> int | None:
    refusal = gate.refusal(method, path, Headers({name.replace("_", "-"): value for name, value in headers.items()}))
    return None if refusal is None else refusal.status


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [
        ("POST", "/denoise", "denoise"),
        ("POST", "/denoise/batch", "denoise"),
        ("GET", "/models", "denoise"),
        ("GET", "/models/gaussian", "denoise"),
        ("DELETE", "/models/gaussian", "admin"),
        ("PATCH", "/models/gaussian", "admin"),
        ("POST", "/train", "train"),
        ("GET", "/train/9b1c", "train"),
        ("GET", "/metrics", "metrics"),
        ("HEAD", "/metrics", "metrics"),
        ("POST", "/metrics", "admin"),
        ("GET", "/denoiser", "admin"),
        ("POST", "/whatever/comes", "admin"),
    ],
)
def test_every_door_has_a_scope_and_an_unknown_one_the_highest(method, path, scope):
    assert scope_of(method, path) == scope


def test_a_key_opens_the_doors_of_its_scopes_and_no_other():
    gate = access(f"{KEY}:denoise,{OTHER}:train+admin")
    assert asked(gate, "POST", "/denoise", authorization=f"Bearer {KEY}") is None
    assert asked(gate, "POST", "/denoise", x_api_key=KEY) is None
    assert asked(gate, "POST", "/train", authorization=f"Bearer {KEY}") == 403
    assert asked(gate, "POST", "/train", authorization=f"bearer {OTHER}") is None
    assert asked(gate, "POST", "/denoise", authorization=f"Bearer {OTHER}") == 403
    assert asked(gate, "GET", "/metrics", authorization=f"Bearer {OTHER}") is None


@pytest.mark.parametrize(
    "headers", [{}, {"authorization": "Bearer"}, {"authorization": "Basic " + KEY}, {"authorization": "Bearer " + KEY[1:]}]
)
def test_without_a_known_key_no_door_opens(headers):
    assert asked(access(KEY), "POST", "/denoise", **headers) == 401


@pytest.mark.parametrize("path", ["/", "/docs", "/web/style.css", "/openapi.json", "/favicon.ico", "/livez", "/readyz"])
def test_pages_and_health_are_open_to_everyone(path):
    assert asked(access(KEY), "GET", path) is None


def test_a_key_may_be_given_by_its_hash_alone():
    key, entry = new_key()
    assert entry == f"sha256${hashlib.sha256(key.encode()).hexdigest()}"
    gate = access(entry)
    assert asked(gate, "POST", "/train", authorization=f"Bearer {key}") is None
    assert asked(gate, "POST", "/train", authorization=f"Bearer {entry}") == 401


def test_no_key_is_kept_or_shown():
    settings = Settings(api_keys=KEY)
    assert KEY not in repr(settings)
    assert KEY not in repr(vars(Access(settings)))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ("short", "holds a key of 5 characters, and 24 are needed"),
        (f"{KEY}:root", "names the scope 'root': there are denoise, train, admin, metrics"),
    ],
)
def test_a_key_against_the_rules_stops_the_start(keys, words):
    with pytest.raises(AccessError, match=words):
        access(keys)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "[::1]", "127.0.0.2", "localhost"])
def test_without_keys_the_service_may_listen_on_loopback(host):
    gate = access(host=host)
    assert asked(gate, "POST", "/train") is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org", ""])
def test_without_keys_it_listens_nowhere_else_unless_asked_by_name_and_then_only_denoises(host):
    with pytest.raises(AccessError, match="set CLEARFOLD_API_KEYS"):
        access(host=host)
    assert access(KEY, host=host).keys
    gate = access(host=host, open_to_anyone=True)
    assert asked(gate, "POST", "/denoise") is None
    assert asked(gate, "GET", "/models") is None
    assert asked(gate, "POST", "/train") == 403
    assert asked(gate, "DELETE", "/models/gaussian") == 403


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_without_keys_no_other_site_may_change_anything_through_a_browser(site):
    assert asked(access(), "POST", "/train", sec_fetch_site=site) == 403
    assert asked(access(), "GET", "/models", sec_fetch_site=site) is None
    assert asked(access(), "POST", "/train", sec_fetch_site="same-origin") is None
    assert asked(access(KEY), "POST", "/train", sec_fetch_site=site, authorization=f"Bearer {KEY}") is None


def test_a_refusal_has_the_one_shape_and_names_the_way_in(serve):
    with serve(Toy(), api_keys=f"{KEY}:denoise") as client:
        refused = client.post("/denoise", content=PNG)
        assert (refused.status_code, refused.headers["content-type"]) == (401, PROBLEM_JSON)
        assert refused.headers["WWW-Authenticate"] == "Bearer"
        assert refused.json()["instance"] == "/denoise"
        assert client.post("/denoise", content=PNG, headers={"Authorization": f"Bearer {KEY}"}).status_code == 200
        forbidden = client.post("/train", headers={"Authorization": f"Bearer {KEY}"})
    assert forbidden.status_code == 403
    assert forbidden.json()["detail"] == "POST /train needs a key of scope 'train', and this one has denoise."


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST:80", None])
def test_on_loopback_without_keys_it_answers_to_its_own_names(host):
    gate = access(allowed_hosts="")
    assert asked(gate, "GET", "/", **({"host": host} if host else {})) is None


def test_and_to_no_other_which_a_site_may_let_point_here():
    gate = access(allowed_hosts="")
    for host in ("evil.example:8000", "localhost.evil.example", "127.0.0.2", "0.0.0.0", "[::2]:80", ""):
        assert asked(gate, "GET", "/denoise", host=host or " ") == 421
    told = gate.refusal("GET", "/", Headers({"host": "evil.example"}))
    assert str(told) == (
        "Host = 'evil.example': it is not one of localhost, 127.0.0.1, [::1]: ask by one of these, or set CLEARFOLD_ALLOWED_HOSTS."
    )


def test_with_keys_or_on_other_addresses_any_name_will_do_unless_some_are_set():
    assert asked(access(KEY, allowed_hosts=""), "GET", "/", host="clean.example.org") is None
    assert asked(access(open_to_anyone=True, host="0.0.0.0", allowed_hosts=""), "GET", "/", host="clean.example.org") is None
    assert asked(access(allowed_hosts="*"), "GET", "/", host="clean.example.org") is None
    some = access(KEY, allowed_hosts="clean.example.org, 10.0.0.5")
    assert [asked(some, "GET", "/", host=host) for host in ("Clean.example.org:443", "10.0.0.5", "localhost")] == [None, None, 421]


def test_a_name_that_is_not_its_own_is_told_over_http(serve):
    with serve(Toy(), allowed_hosts="") as client:
        answer = client.get("/livez")
        assert (answer.status_code, answer.headers["content-type"]) == (421, PROBLEM_JSON)
        assert client.get("/livez", headers={"Host": "localhost:1"}).status_code == 200


def test_scopes_are_those_of_the_key_and_without_keys_all():
    gate = access(f"{KEY}:denoise+train")
    assert gate.scopes(Headers({"x-api-key": KEY})) == {"denoise", "train"}
    assert gate.scopes(Headers({"x-api-key": OTHER})) == frozenset()
    assert access().scopes(Headers()) == {"denoise", "train", "admin", "metrics"}


def test_the_schema_tells_of_keys_where_there_are_some(serve):
    def doors(**settings) -> dict:
        with serve(Toy(), **settings) as client:
            schema = client.get("/openapi.json").json()
        assert ("securitySchemes" in schema["components"]) == ("api_keys" in settings)
        return {f"{method} {path}": each for path, methods in schema["paths"].items() for method, each in methods.items()}

    for door, each in doors(api_keys=KEY, allowed_hosts="testserver").items():
        method, path = door.split()
        assert "421" in each["responses"]
        if asked(access(KEY), method.upper(), path) is None:
            assert ("security" in each, "401" in each["responses"]) == (False, False), door
        else:
            scope = scope_of(method.upper(), path)
            assert each["security"] == [{"bearer": [scope]}, {"header": [scope]}]
            assert {"401", "403"} <= set(each["responses"]), door
            assert each["responses"]["401"]["content"][PROBLEM_JSON]["examples"]["Unauthorized"]["value"]["status"] == 401
    assert not any("security" in each or "401" in each["responses"] for each in doors().values())
    public = {door for door, each in doors(host="0.0.0.0", open_to_anyone=True).items() if "403" in each["responses"]}
    assert "get /train" in public
    assert not public & {"post /denoise", "get /models", "get /metrics", "get /livez"}


def test_a_key_that_may_train_does_not_choose_the_default_model_by_it(serve):
    with serve(Toy(), api_keys=f"{KEY}:train {OTHER}:train+admin") as client:
        picture = {"files": ("a.png", encoded(noise(100, 96)))}
        refused = client.post("/train", files=picture, data={"activate": "if_better"}, headers={"X-API-Key": KEY})
        assert refused.status_code == 403
        assert refused.json()["detail"] == (
            "activate = 'if_better': it changes the default model, which needs a key of scope 'admin', and this one has train: "
            "leave it out, and have the model chosen with PUT /models/default."
        )
        for key, activate in ((KEY, "never"), (OTHER, "always")):  # both come as far as their single picture, of which two are needed
            answer = client.post("/train", files=picture, data={"activate": activate, "parent": "scratch"}, headers={"X-API-Key": key})
            assert answer.status_code == 422
            assert "2 are needed" in answer.text
