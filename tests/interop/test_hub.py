"""Models by their hub id, without a network: from a cache laid out as huggingface_hub does."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")
hub = pytest.importorskip("huggingface_hub")

from interop import diffusers_models as theirs  # noqa: E402
from interop import models  # noqa: E402
from progdistill.interop import load, save  # noqa: E402
from progdistill.interop.hub import hub_id  # noqa: E402

COMMITS = {"main": "a" * 40, "v2": "b" * 40}


def put(folder, cache, repository, revision="main"):
    """Files of a folder into the cache, the way a download does: blobs by hash, a snapshot of links, a ref."""
    place = cache / f"models--{repository.replace('/', '--')}"
    commit = COMMITS[revision]
    for file in (file for file in sorted(folder.rglob("*")) if file.is_file()):
        blob = place / "blobs" / f"{abs(hash((commit, file))):064x}"
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, blob)
        link = place / "snapshots" / commit / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    ref = place / "refs" / revision
    ref.parent.mkdir(parents=True, exist_ok=True)
    ref.write_text(commit)


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    """(cache, the networks of the revisions)."""
    torch.set_num_threads(1)
    cache, networks = tmp_path_factory.mktemp("cache"), {}
    for seed, revision in enumerate(COMMITS):
        networks[revision] = theirs.unet(seed)
        folder = theirs.pipeline(tmp_path_factory.mktemp(revision), network=networks[revision])
        put(folder, cache, "google/ddpm-look-alike", revision)
    return cache, networks


def test_an_id_is_taken_from_the_cache(cached):
    cache, networks = cached
    model = load("google/ddpm-look-alike", cache_dir=cache, local_files_only=True)
    theirs.assert_same_outputs(model, networks["main"], [500])
    assert model.provenance == {"source": "google/ddpm-look-alike", "revision": COMMITS["main"]}


@pytest.mark.parametrize(
    "name, revision",
    [
        ("google/ddpm-look-alike", "v2"),
        ("google/ddpm-look-alike@v2", None),
        ("hf-hub:google/ddpm-look-alike@v2", "v2"),
        ("google/ddpm-look-alike", COMMITS["v2"]),
    ],
)
def test_revisions(cached, name, revision):
    cache, networks = cached
    model = load(name, revision=revision, cache_dir=cache, local_files_only=True)
    theirs.assert_same_outputs(model, networks["v2"], [500])


def test_a_path_that_exists_wins(cached, tmp_path, monkeypatch):
    cache, _ = cached
    monkeypatch.chdir(tmp_path)
    model = models.denoiser()
    save(model, "google/ddpm-look-alike")
    found = load("google/ddpm-look-alike", cache_dir=cache, local_files_only=True)
    assert torch.equal(found.network.conv_in.weight, model.network.conv_in.weight)
    with pytest.raises(ValueError, match="is a folder here"):
        load("google/ddpm-look-alike", revision="main")
    remote = load("hf-hub:google/ddpm-look-alike", cache_dir=cache, local_files_only=True)
    assert remote.sample_shape == theirs.SHAPE


def test_a_misspelt_path_asks_nobody(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(FileNotFoundError, match=r"looked for .*runs/techer.*no such folder"):
        load("runs/techer")


@pytest.mark.parametrize("name", ["google/other", "google/ddpm-look-alike@v3"])
def test_what_is_not_in_the_cache(cached, name):
    with pytest.raises(FileNotFoundError, match=r"no folder .* hub gives no such model.*pass its folder"):
        load(name, cache_dir=cached[0], local_files_only=True)


def test_two_revisions():
    with pytest.raises(ValueError, match="'v1'.*'v2'"):
        load("google/ddpm@v1", revision="v2")


def test_without_huggingface_hub(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(FileNotFoundError, match=r"pip install progdistill\[hub\]"):
        load("google/ddpm-cifar10-32")


@pytest.mark.parametrize(
    "given, expected",
    [
        ("google/ddpm-cifar10-32", ("google/ddpm-cifar10-32", None)),
        ("a/b@refs/pr/3", ("a/b", "refs/pr/3")),
        ("ddpm", None),
        ("/a/b", None),
        ("./a/b", None),
        ("a/b/c", None),
        ("~/a", None),
        ("hf-hub:tests/b", ("tests/b", None)),
    ],
)
def test_what_an_id_looks_like(given, expected):
    assert hub_id(given) == expected


def test_home_and_offline_mode_are_honoured(cached, tmp_path):
    """In a process of its own: huggingface_hub reads them once."""
    shutil.copytree(cached[0], tmp_path / "hub", symlinks=True)
    code = "import progdistill; print(progdistill.load('google/ddpm-look-alike').provenance['revision'])"
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_HUB_CACHE", None)
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == COMMITS["main"], done.stderr


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """A hub that gives out the files of the folder `remote` and remembers which."""
    folder, snapshot, fetched = tmp_path / "remote", tmp_path / "snapshots" / ("c" * 40), []

    def snapshot_download(repo_id, *, allow_patterns, **options):
        names = [str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()]
        for name in hub.utils.filter_repo_objects(names, allow_patterns=allow_patterns):
            if not (snapshot / name).exists():
                (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(folder / name, snapshot / name)
                fetched.append(Path(name).name)
        return str(snapshot)

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    return folder, fetched


STEM = "diffusion_pytorch_model"


@pytest.mark.parametrize(
    "variant, options, expected",
    [
        (None, {}, [f"{STEM}.safetensors"]),
        ("fp16", {}, [f"{STEM}.fp16.safetensors"]),
        (None, {"safe_serialization": False}, [f"{STEM}.bin"]),
        ("fp16", {"safe_serialization": False}, [f"{STEM}.fp16.bin"]),
    ],
)
def test_only_the_weights_that_are_read_are_downloaded(remote, variant, options, expected):
    folder, fetched = remote
    networks = {None: theirs.unet(0), "fp16": theirs.unet(1)}
    for each, network in networks.items():
        theirs.pipeline(folder, network=network, variant=each, **options)
    (folder / "unet" / "optimizer.bin").write_bytes(b"large")
    (folder / "flax_model.msgpack").write_bytes(b"large")
    model = load("google/ddpm", variant=variant)
    theirs.assert_same_outputs(model, networks[variant], [500])
    assert [name for name in fetched if not name.endswith(".json")] == expected


def test_parts_are_downloaded(remote):
    folder, fetched = remote
    network = theirs.unet()
    theirs.pipeline(folder, network=network, max_shard_size="40KB")
    theirs.assert_same_outputs(load("google/ddpm"), network, [500])
    assert sum("-of-" in name for name in fetched) > 1


def test_weights_of_other_pipelines_are_not_downloaded(remote):
    folder, fetched = remote
    theirs.pipeline(folder)
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace("{", '{"vae": ["diffusers", "AutoencoderKL"],', 1))
    with pytest.raises(ValueError, match="latents"):
        load("stabilityai/sd")
    assert not [name for name in fetched if not name.endswith(".json")]


def test_our_own_models_on_the_hub(remote):
    folder, fetched = remote
    averaged, raw = models.denoiser(seed=0), models.denoiser(seed=1)
    save(averaged, folder, raw_state_dict=raw.network.state_dict())
    found = load("someone/student")
    assert torch.equal(found.network.conv_in.weight, averaged.network.conv_in.weight)
    assert fetched.count(f"{STEM}.safetensors") == 1
    found = load("someone/student", weights="raw")
    assert torch.equal(found.network.conv_in.weight, raw.network.conv_in.weight)
