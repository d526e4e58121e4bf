"""What is around every request: an id, headers, a line in the log, a count."""

import json
import logging

import pytest
from toys import Toy, encoded, noise

from app import logs

PNG = encoded(noise())


def broken(pixels, sigma, keep_going):
    raise RuntimeError("a secret of the inside")


@pytest.mark.parametrize(
    ("method", "path"),
    [("get", "/livez"), ("get", "/nowhere"), ("post", "/denoise"), ("post", "/denoise?model=broken"), ("get", "/metrics")],
)
def test_every_answer_has_an_id_and_the_headers_that_keep_a_browser_safe(serve, method, path):
    with serve(Toy(), Toy(broken, name="broken")) as client:
        answer = client.request(method, path, content=PNG if method == "post" else None)
    assert len(answer.headers["X-Request-Id"]) == 16
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "frame-ancestors 'none'" in policy
    assert "script" not in policy
    assert answer.headers["Referrer-Policy"] == "no-referrer"


def test_an_id_that_is_given_is_kept_if_it_is_one(serve):
    with serve(Toy()) as client:
        assert client.get("/livez", headers={"X-Request-Id": "a-b_c.9"}).headers["X-Request-Id"] == "a-b_c.9"
        for odd in ("", "a b", "x" * 65, "<b>"):
            assert client.get("/livez", headers={"X-Request-Id": odd}).headers["X-Request-Id"] != odd


def test_a_large_answer_comes_in_pieces_and_whole(serve):
    large = noise(700, 500)
    with serve(Toy()) as client:
        answer = client.post("/denoise?format=bmp", content=encoded(large))
    assert len(answer.content) > 4 * (1 << 18)
    assert int(answer.headers["content-length"]) == len(answer.content)


def test_requests_pictures_pixels_and_stages_are_counted_by_door_never_by_path(serve):
    with serve(Toy()) as client:
        client.post("/denoise", content=PNG)
        client.post("/denoise", content=b"words")
        client.get("/nowhere/4711")
        told = client.get("/metrics")
    assert told.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    lines = told.text.splitlines()
    assert 'clearfold_requests_total{door="/denoise",method="POST",status="200"} 1.0' in lines
    assert 'clearfold_requests_total{door="/denoise",method="POST",status="415"} 1.0' in lines
    assert 'clearfold_requests_total{door="other",method="GET",status="404"} 1.0' in lines
    assert 'clearfold_pictures_total{format="png"} 1.0' in lines
    assert f'clearfold_pixels_total{{model="toy"}} {24 * 16}.0' in lines
    assert 'clearfold_stage_seconds_count{stage="denoise"} 1.0' in lines
    assert 'clearfold_device_info{device="cpu",dtype="float32",model="toy"} 1.0' in lines
    assert "clearfold_pictures_waiting 0.0" in lines
    assert "4711" not in told.text


def test_the_log_has_a_line_a_request_with_its_id_and_nothing_of_the_picture(serve, caplog):
    caplog.set_level(logging.INFO, logger="clearfold")
    with serve(Toy()) as client:
        client.post("/denoise", files={"file": ("my-secret.png", PNG)}, headers={"X-Request-Id": "abc", "Authorization": "Bearer hidden"})
    (line,) = [record for record in caplog.records if record.name == "clearfold"]
    assert (line.method, line.path, line.status, line.client) == ("POST", "/denoise", 200, "testclient")
    assert "my-secret" not in caplog.text
    assert "hidden" not in caplog.text


def test_json_lines_can_be_read_again_whatever_is_in_them():
    record = logging.LogRecord("clearfold", logging.INFO, "f", 1, "%s", ("a\nb \x1b[31m\udcff",), None)
    record.request_id, record.status = "id", 200
    line = logs.Json().format(record)
    assert "\n" not in line
    assert "\x1b" not in line
    told = json.loads(line)
    assert (told["message"], told["level"], told["request_id"], told["status"]) == ("a\nb \x1b[31m\udcff", "info", "id", 200)
    assert told["time"].endswith("+00:00")


def test_a_failure_is_logged_with_its_trace_and_answered_without(serve, caplog):
    with serve(Toy(broken)) as client:
        answer = client.post("/denoise", content=PNG)
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "a secret of the inside" in caplog.text


def test_a_rate_is_off_by_default_and_refuses_with_the_time_to_wait(serve):
    with serve(Toy(), rate_limit="2/minute") as client:
        assert [client.post("/denoise", content=PNG).status_code for _ in range(3)] == [200, 200, 429]
        refused = client.post("/denoise", content=PNG)
        assert refused.json()["limit"] == {"rate_limit": "2/minute"}
        assert 1 <= int(refused.headers["Retry-After"]) <= 60
        assert client.get("/livez").status_code == 200
        assert client.post("/denoise", content=PNG, headers={"X-API-Key": "another"}).status_code == 429  # a key that nobody checked


def test_every_key_has_a_rate_of_its_own(serve):
    one, two = ({"X-API-Key": letter * 32} for letter in "ab")
    with serve(Toy(), rate_limit="1/minute", api_keys=",".join(each["X-API-Key"] for each in (one, two))) as client:
        assert [client.post("/denoise", content=PNG, headers=key).status_code for key in (one, one, two)] == [200, 429, 200]
        key = one["X-API-Key"]
        for same in ({"Authorization": f"Bearer  {key}"}, {"Authorization": f"bearer {key}"}, one | {"Authorization": "Basic 1"}):
            assert client.post("/denoise", content=PNG, headers=same).status_code == 429
