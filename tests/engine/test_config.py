import base64
import tomllib

import pytest

from engine.config import Config, describe, load_config, load_keys


def test_flags_beat_the_environment_which_beats_the_file_which_beats_defaults(tmp_path):
    path = tmp_path / "engine.toml"
    path.write_text("[server]\nport = 1\nhost = 'a'\nreserve_ms = 3\n[cache]\nttl_s = 5")
    environment = {"QUERYREC_SERVER_PORT": "2", "QUERYREC_SERVER_HOST": "b", "HOME": "/"}
    config = load_config(path, environment, {"server.port": 3, "server.host": None})
    assert (config.server.port, config.server.host, config.server.reserve_ms) == (3, "b", 3)
    assert config.cache.ttl_s == 5
    assert config.models == Config().models


def test_truth_values_come_from_the_environment_too():
    config = load_config(None, {"QUERYREC_MODELS_SHARED_THREAD_POOL": "false"}, {})
    assert config.models.shared_thread_pool is False


def test_all_mistakes_are_reported_together(tmp_path):
    path = tmp_path / "engine.toml"
    path.write_text("[server]\nprot = 1\nport = 'x'\n[nosuch]\na = 1\n")
    with pytest.raises(ValueError, match="configuration") as failure:
        load_config(path, {"QUERYREC_CACHE_TTL_S": "-1", "QUERYREC_CACHE_SIZE": "1"}, {})
    for name in ("server.prot", "server.port", "nosuch.a", "cache.ttl_s", "QUERYREC_CACHE_SIZE"):
        assert name in str(failure.value)


@pytest.mark.parametrize("seconds", ["inf", "nan", "31536001"])
def test_a_generation_is_kept_for_a_year_at_most(seconds):
    with pytest.raises(ValueError, match=r"cache\.ttl_s is"):
        load_config(None, {"QUERYREC_CACHE_TTL_S": seconds}, {})


def test_variables_that_kubernetes_sets_for_a_service_are_let_pass():
    address = "tcp://10.0.0.1:50051"
    for service in ("QUERYREC", "QUERYREC_CANARY", "QUERYREC_SERVER", "QUERYREC_METRICS"):
        environment = {
            f"{service}_SERVICE_HOST": "10.0.0.1",
            f"{service}_SERVICE_PORT": "50051",
            f"{service}_SERVICE_PORT_GRPC": "50051",
            f"{service}_PORT": address,
            f"{service}_PORT_50051_TCP": address,
            f"{service}_PORT_50051_TCP_PROTO": "tcp",
            f"{service}_PORT_50051_TCP_PORT": "50051",
            f"{service}_PORT_50051_TCP_ADDR": "10.0.0.1",
        }
        assert load_config(None, environment, {}) == Config()


@pytest.mark.parametrize("name", ["SERVR_PORT", "SERVER_PRT", "PORT", "WORKERS", "CACHE_TTL"])
def test_a_variable_that_is_no_setting_is_refused(name):
    with pytest.raises(ValueError, match=f"QUERYREC_{name} is no setting"):
        load_config(None, {f"QUERYREC_{name}": "1"}, {})


def test_a_file_that_is_no_toml_is_named(tmp_path):
    path = tmp_path / "engine.toml"
    path.write_text("port: 1")
    with pytest.raises(ValueError, match=r"engine\.toml"):
        load_config(path, {}, {})


def test_the_printed_configuration_is_the_configuration(tmp_path):
    path = tmp_path / "printed.toml"
    path.write_text(describe(Config()))
    assert load_config(path, {}, {}) == Config()
    assert tomllib.loads(describe(Config()))["server"]["port"] == 50_051


def test_keys_come_from_a_file_and_the_first_signs(tmp_path):
    path = tmp_path / "keys"
    old, new = (base64.b64encode(c * 32).decode() for c in (b"o", b"n"))
    path.write_text(f"# signing keys\n2026-04 {new}\n2026-03 {old}\n")
    keys = load_keys(str(path))
    assert keys.active_key_id == "2026-04"
    assert keys.secrets["2026-03"] == b"o" * 32


@pytest.mark.parametrize("content", ["", "key", "key not-base64!", "a b c"])
def test_a_broken_key_file_is_named_without_its_secrets(tmp_path, content):
    path = tmp_path / "keys"
    path.write_text(content)
    with pytest.raises(ValueError, match="keys") as failure:
        load_keys(str(path))
    assert "not-base64" not in str(failure.value)


def test_two_keys_of_one_id_are_refused(tmp_path):
    path = tmp_path / "keys"
    new, old, other = (base64.b64encode(c * 32).decode() for c in (b"n", b"o", b"p"))
    path.write_text(f"2026-11 {new}\n2026-05 {old}\n2026-11 {other}\n")
    with pytest.raises(ValueError, match=r"keys:3: key '2026-11' is there twice"):
        load_keys(str(path))


def test_without_a_file_each_start_has_a_key_of_its_own():
    one, other = load_keys(""), load_keys("")
    assert one.active_key_id not in other.secrets, "a token of before a restart is no forgery"
    assert set(one.secrets.values()).isdisjoint(other.secrets.values())


def test_a_feedback_directory_without_a_name_is_refused():
    with pytest.raises(ValueError, match=r"feedback\.directory is ''"):
        load_config(None, {"QUERYREC_FEEDBACK_DIRECTORY": ""}, {})
