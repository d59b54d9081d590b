import json
from pathlib import Path

from merging.companions import companion_files, copy_companions


def test_everything_but_weights_and_records_is_carried_over(tmp_path: Path) -> None:
    kept = ["config.json", "tokenizer.json", "modules.json", "1_Pooling/config.json", "2_Dense/config.json", "model.py"]
    left = [
        *("model.safetensors", "model-1.safetensors", "model.safetensors.index.json", "pytorch_model.bin"),
        *("pytorch_model.bin.index.json", "2_Dense/model.safetensors", "onnx/model.json", "openvino/model.xml"),
        *("README.md", "merge.json", "manifest.json", ".git/config", ".gitattributes", "tf_model.h5", "a.ckpt"),
    ]
    for name in [*kept, *left]:
        (tmp_path / "from" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "from" / name).write_text(name)
    assert companion_files(tmp_path / "from") == sorted(kept)
    copy_companions(tmp_path / "from", tmp_path / "to")
    assert {path.relative_to(tmp_path / "to").as_posix() for path in (tmp_path / "to").rglob("*.*")} == set(kept)
    assert (tmp_path / "to" / "1_Pooling" / "config.json").read_text() == "1_Pooling/config.json"


def test_links_become_files(tmp_path: Path) -> None:
    (tmp_path / "blob").write_text("x")
    (tmp_path / "from").mkdir()
    (tmp_path / "to").mkdir()
    (tmp_path / "from" / "config.json").symlink_to(tmp_path / "blob")
    copy_companions(tmp_path / "from", tmp_path / "to")
    assert not (tmp_path / "to" / "config.json").is_symlink()
    assert (tmp_path / "to" / "config.json").read_text() == "x"


def test_linked_folders_are_followed_and_links_back_up_are_not(tmp_path: Path) -> None:
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "elsewhere" / "config.json").write_text("pooling")
    (tmp_path / "elsewhere" / "deep" / "a.txt").write_text("a")
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "1_Pooling").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "from" / "2_Again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "deep" / "up").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "from" / "self").symlink_to(tmp_path / "from")
    (tmp_path / "from" / "broken.json").symlink_to(tmp_path / "gone")
    names = [f"{module}/{name}" for module in ("1_Pooling", "2_Again") for name in ("config.json", "deep/a.txt")]
    assert companion_files(tmp_path / "from") == names
    copy_companions(tmp_path / "from", tmp_path / "to")
    assert (tmp_path / "to" / "1_Pooling" / "config.json").read_text() == "pooling"
    assert not (tmp_path / "to" / "1_Pooling").is_symlink()


def test_code_that_the_configuration_names_is_carried_over(tmp_path: Path) -> None:
    source = tmp_path / "from"
    source.mkdir()
    code = {"AutoConfig": "configuration_new.NewConfig", "AutoModel": "modeling_new.NewModel"}
    (source / "config.json").write_text(json.dumps({"auto_map": code}))
    for name in ("configuration_new.py", "modeling_new.py", "layers_used_by_modeling.py"):
        (source / name).write_text(f"# {name}")
    copy_companions(source, tmp_path / "to")
    for module in code.values():
        assert (tmp_path / "to" / f"{module.partition('.')[0]}.py").is_file()
    assert (tmp_path / "to" / "layers_used_by_modeling.py").is_file()
