"""Signing a folder and verifying it, with keys that are made here."""

import base64
import json
import py_compile
import shutil
from pathlib import Path

import pytest
from huggingface_hub import snapshot_download

from helpers.hub_server import HubServer
from multitask_sentence import MultiTaskModel
from multitask_sentence.commands import doctor, push, sign, verify
from multitask_sentence.training.report.publish import stays_behind

pytest.importorskip("model_signing", reason="the extra signing is not installed")


@pytest.fixture
def keys(tmp_path: Path) -> tuple[str, str]:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    private, public = tmp_path / "private.pem", tmp_path / "public.pem"
    key = ec.generate_private_key(ec.SECP256R1())
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    private.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    public.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return str(private), str(public)


def test_signature_covers_all_that_is_pushed_and_finds_every_change(
    tiny_model: MultiTaskModel, keys: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    private, public = keys
    folder = tmp_path / "model"
    tiny_model.save_pretrained(folder)
    (folder / "best" / "mood").mkdir(parents=True)
    (folder / "best" / "mood" / "model.safetensors").write_bytes(b"stays behind")
    with pytest.raises(SystemExit, match=r"is not verified: there is no model\.sig"):
        verify.main([str(folder), "--public_key", public])
    sign.main([str(folder), "--private_key", private])
    verify.main([str(folder), "--public_key", public])
    assert "every file is what was signed" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        doctor.main([str(folder), "--seal"])
    assert ended.value.code == 0
    MultiTaskModel.from_pretrained(folder, verify=True)

    pushed = Path(shutil.copytree(folder, tmp_path / "pushed", ignore=shutil.ignore_patterns("best")))
    assert not stays_behind("model.sig")
    (pushed / "README.md").write_text("# A card that somebody wrote")
    verify.main([str(pushed), "--public_key", public])
    for name in ("modeling_multitask.py", "model.safetensors", "config.json", "added_multitask.py"):
        changed = Path(shutil.copytree(pushed, tmp_path / name))
        with (changed / name).open("ab") as file:
            file.write(b" ")
        with pytest.raises(SystemExit, match="is not verified"):
            verify.main([str(changed), "--public_key", public])
    with pytest.raises(SystemExit, match="is not verified"):
        verify.main([str(pushed), "--public_key", private])


def test_folder_that_is_pushed_and_downloaded_is_verified(
    tiny_model: MultiTaskModel, keys: tuple[str, str], nearby: HubServer, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    tiny_model.save_pretrained(folder)
    tiny_model.save_pretrained(folder / "final")
    (folder / "predictions").mkdir()
    (folder / "predictions" / "mood.parquet").write_text("texts of the data")
    sign.main([str(folder), "--private_key", keys[0]])
    verify.main([str(folder), "--public_key", keys[1]])
    push.main([str(folder), "team/signed"])
    downloaded = Path(snapshot_download("team/signed", local_dir=tmp_path / "downloaded"))
    assert not (downloaded / "predictions").exists() and not (downloaded / "final").exists()
    verify.main([str(downloaded), "--public_key", keys[1]])
    with (downloaded / "modeling_multitask.py").open("ab") as file:
        file.write(b" ")
    with pytest.raises(SystemExit, match="is not verified"):
        verify.main([str(downloaded), "--public_key", keys[1]])


@pytest.fixture
def folder(tiny_model: MultiTaskModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A saved model with what a run leaves beside it, by a relative path as it is typed."""
    monkeypatch.chdir(tmp_path)
    tiny_model.save_pretrained("mine")
    for name in ("README.md", "best/mood/model.safetensors", "runs/2026_this-host/events.out.1.this-host", "a.bin"):
        path = Path("mine", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("stays behind")
    return Path("mine")


def signed_names(folder: Path) -> str:
    """All that a signature says, signed and ignored files alike."""
    return base64.b64decode(json.loads((folder / "model.sig").read_text())["dsseEnvelope"]["payload"]).decode()


def test_relative_folder_is_signed_and_verified_and_may_lose_what_stays_behind(
    folder: Path, keys: tuple[str, str]
) -> None:
    private, public = keys
    sign.main([str(folder), "--private_key", private])
    verify.main([str(folder), "--public_key", public])
    (folder / "README.md").write_text("# A card that somebody wrote")
    shutil.rmtree(folder / "best")
    verify.main([str(folder), "--public_key", public])
    (folder / "added_multitask.py").touch()
    with pytest.raises(SystemExit, match="Extra files found"):
        verify.main([str(folder), "--public_key", public])


def test_signature_names_no_file_of_a_folder_that_stays_behind(folder: Path, keys: tuple[str, str]) -> None:
    sign.main([str(folder), "--private_key", keys[0]])
    assert "a.bin" in signed_names(folder), "premise: what is left out is named"
    assert "this-host" not in signed_names(folder)


def test_compiled_code_that_no_signature_covers_is_refused(folder: Path, keys: tuple[str, str]) -> None:
    private, public = keys
    py_compile.compile(str(folder / "modeling_multitask.py"))
    remedy = rf"__pycache__/modeling_multitask.*\.pyc is compiled code, .* rm -r {folder}/__pycache__"
    with pytest.raises(SystemExit, match=remedy):
        sign.main([str(folder), "--private_key", private])
    assert not (folder / "model.sig").exists()
    shutil.rmtree(folder / "__pycache__")
    sign.main([str(folder), "--private_key", private])
    verify.main([str(folder), "--public_key", public])
    py_compile.compile(str(folder / "modeling_multitask.py"))
    with pytest.raises(SystemExit, match=remedy):
        verify.main([str(folder), "--public_key", public])


def test_password_of_the_key_comes_from_the_environment(
    folder: Path, keys: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(Path(keys[0]).read_bytes(), None)
    locked = serialization.BestAvailableEncryption(b"open it")
    pem, kind = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    Path("locked.pem").write_bytes(key.private_bytes(pem, kind, locked))
    with pytest.raises(SystemExit, match="was not signed"):
        sign.main([str(folder), "--private_key", "locked.pem"])
    monkeypatch.setenv("MULTITASK_SENTENCE_KEY_PASSWORD", "open it")
    sign.main([str(folder), "--private_key", "locked.pem"])
    verify.main([str(folder), "--public_key", keys[1]])
