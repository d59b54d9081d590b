"""Every knob of every command: frozen dataclasses of plain values, a docstring under each field (it is the flag's help).

Standard library only, so that ``--help`` answers at once. Names are their owners': Trainer fields as in Lightning, LoRA fields as
in PEFT, merge parameters as in mergekit.
"""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

MergeName = Literal["soup", "karcher", "slerp", "linear", "last", "search"]
DEFAULT_MERGES: tuple[MergeName, ...] = ("soup", "karcher", "slerp", "linear")


class Plain:
    """What all configurations share."""

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, as written to ``config.json`` (tuples as lists)."""
        return _plain(asdict(self))  # type: ignore[call-overload]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """The adapter."""

    r: int = 16
    """Rank of the update."""
    alpha: int = 32
    """The update is scaled by alpha / r."""
    dropout: float = 0.0
    """Dropout in front of lora_A."""
    targets: tuple[str, ...] = ()
    """Names of the linear layers to adapt; default: the backbone's own list, experts included."""
    use_dora: bool = False
    """DoRA: train the length of each output's weights beside the update of their direction."""
    use_rslora: bool = False
    """rsLoRA: scale the update by alpha / sqrt(r)."""
    quantization: Literal["none", "nf4", "fp4", "int8"] = "none"
    """Precision of the frozen base while the adapter is trained. Merges always take the base as it is stored."""
    dense: Literal["freeze", "train"] = "freeze"
    """Dense modules behind the transformer (embeddinggemma has two): kept as they are, or trained and saved with the stage."""


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One stage of a run: it starts from the weights of the stage before and ends as a folder of its own."""

    name: str
    """Name of the stage; its folder is stages/NUMBER-NAME."""
    families: tuple[str, ...] = ()
    """Sequence families to train on (with --data: leave empty)."""
    epochs: int = 6
    """At most so many epochs; a stage ends earlier when the selection suite's silhouette stops rising."""
    steps_per_epoch: int = 15
    """Optimiser steps an epoch. Every epoch ends with the clustering metrics."""
    patience: int = 2
    """Epochs without a better selection silhouette before the stage ends."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW."""
    retention_floor: float = 0.0
    """Least CKA to the base, on the selection suite, of an epoch that may be kept; 0: whatever separates best."""
    classes: int | None = None
    """P: labels a batch. Default: as many as there are, at most 12; of pairs, at most 24."""
    texts_per_class: int | None = None
    """K: texts of each label in a batch. Default: what fills a batch of 48; with infonce 2, or all texts of a pair."""


BROAD_STAGE = StageConfig(name="broad", families=("broad",), epochs=3)
SIX_STAGE = StageConfig(name="six", families=("six",))


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Plain):
    """Adapt an embedder in stages, merge the stages, and report what was gained and what was kept."""

    backbone: str = "tiny-llm"
    """A name of BACKBONES (tiny-llm, e5-mistral, qwen3-0.6b, ...), a local folder, or a hub id."""
    data: str | None = None
    """Your own .jsonl or .csv file: columns text,label, or anchor,positive[,negative]. Default: the sequence families."""
    eval_data: str | None = None
    """Labelled text to report on. Default: a part of --data that is held back."""
    stages: tuple[StageConfig, ...] = (BROAD_STAGE, SIX_STAGE)
    """The stages, in order. More than two are written in --config."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """The adapter."""
    adapt_top: int | None = None
    """Adapt the top so many layers only. Default: all."""
    prefix_cache: bool = True
    """With --adapt-top: compute the states below the adapted layers once and keep them on the disk."""
    bidirectional: bool = False
    """Remove the causal mask of a decoder: every token reads the whole text. Its stages and merges keep it so."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Precision in which the base is loaded. Default: as it is stored."""
    gradient_checkpointing: bool = False
    """Compute the states inside a layer again in the backward pass, for less memory and a third more time."""
    batching: Literal["sorted", "padded", "packed"] = "sorted"
    """Texts of a batch are embedded in parts of like length; padded: all together; packed: end to end, without padding."""
    token_budget: int | None = None
    """Tokens embedded at once, padding included: parts within it are computed again in the backward pass (GradCache)."""
    objective: Literal["supcon", "infonce"] = "supcon"
    """supcon: supervised contrastive, by label; infonce: one positive a text, and hard negatives where the data has them."""
    temperature: float = 0.1
    """Temperature of the contrastive loss."""
    matryoshka: tuple[int, ...] = ()
    """Train the first so many dimensions as well: their losses are averaged with that of the whole embedding."""
    geometry_weight: float = 0.0
    """Weight of the distance between the batch's similarities and those of the base model; 0 leaves it out."""
    gradient_clip_val: float = 1.0
    """Largest gradient norm."""
    non_finite: Literal["stop", "skip", "rollback"] = "stop"
    """After a loss or gradient that is not finite: end, leave out that step, or go back to the last good weights."""
    average: Literal["none", "ema", "swa"] = "none"
    """Measure and keep an average of the trained weights over the steps: exponential, or uniform over a stage's second half."""
    ema_decay: float = 0.98
    """Decay of the exponential average, a step."""
    replicas: int = 1
    """Train the last stage so many times from the same weights, a folder each, as ingredients of merges."""
    replica_learning_rates: tuple[float, ...] = ()
    """Learning rates that replicas take in turn. Default: that of the stage."""
    replica_fraction: float = 1.0
    """Share of the texts of each label that a replica sees, drawn anew for each (bagging)."""
    merges: tuple[MergeName, ...] = DEFAULT_MERGES
    """soup and karcher of the stages (with --replicas: of the replicas); slerp and linear half-way from the base to the last stage (the
    best replica); last: that one itself, whole; search: the weights that separate the selection suite best. Replicas add search."""
    baselines: bool = True
    """Rows of trivial features (last digits, differences, parity, length, characters, chance) in the report."""
    permutations: int = 1000
    """Shuffles of the labels behind the null of each silhouette."""
    draws: int = 99
    """Gaussian clouds behind the null of the KMeans columns; 0 leaves it out."""
    accelerator: str = "auto"
    """Lightning's accelerator: auto, cpu, gpu."""
    devices: int = 1
    """Devices (or, on the CPU, gloo processes)."""
    strategy: Literal["auto", "ddp", "ddp_fork", "fsdp"] = "auto"
    """Lightning's strategy; auto takes ddp for more than one device. fsdp (FSDP2) spreads the weights over the devices."""
    num_nodes: int = 1
    """Machines, each with so many --devices; torchrun or SLURM starts this command on every one."""
    timeout: float = 1800.0
    """Seconds that a rank waits for the others before the run ends."""
    precision: str = "32-true"
    """Lightning's precision: 32-true, bf16-mixed."""
    deterministic: bool = False
    """Deterministic kernels on a GPU: what --resume needs to be exact there."""
    num_workers: int = 0
    """Processes that make batches ready; the batches do not depend on it."""
    log_every_n_steps: int = 5
    """Steps between the values of loss, norm and throughput, and between checks that they are finite."""
    cross_fit: int = 0
    """Fit the last stage again on half of the paper's own windows and measure the unseen half: 2 or 6 times. 0: not at all."""
    max_steps: int = -1
    """Stop every stage after so many steps; -1: no limit."""
    seed: int = 0
    """Seed of the adapter, the batches and the metrics."""
    output: str = "runs/main"
    """Folder of the run."""
    every_n_train_steps: int = 0
    """Save what --resume needs after so many steps, besides the end of every epoch; 0: then only."""
    resume: bool = False
    """Go on with the run in --output, from the last state saved: the end of an epoch, or the batch at which it was stopped."""
    allow_changes: tuple[str, ...] = ()
    """With --resume: settings that may differ from those of the run, such as devices, data or precision."""
    overwrite: bool = False
    """Replace what is in --output."""
    plan: bool = False
    """Print parameters, memory, steps, tokens and disk of the run; start nothing and write nothing."""
    offline: bool = False
    """Use local and cached models only."""
    cache: str | None = None
    """Folder of downloaded models. Default: the hub's own."""
    trust_remote_code: bool = False
    """Of evaluate.py. A run refuses a model that brings its code: its stages and merges could not be loaded without that code."""
    pickled_weights: bool = False
    """Read a model that has pytorch_model.bin only (weights, no code), by way of a safetensors copy in the cache."""
    config: str | None = None
    """A JSON or YAML file of these settings; flags win over it."""
    json: bool = False
    """Print one JSON object as the last line of stdout."""

    @property
    def ranks(self) -> int:
        """Processes that train, on all machines together."""
        return self.devices * self.num_nodes


@dataclass(frozen=True, kw_only=True)
class MergeConfig(Plain):
    """Merge checkpoints of one base into one model, or adapters into one adapter.

    docs/merging.md is the guide: methods, recipes, searches, merge.json.
    """

    method: str | None = None
    """How to merge:
    average: linear (the soup), norm_matched
    on the sphere: slerp and nuslerp (two inputs), karcher (also called multislerp), hierarchical_slerp, sequential_slerp
    from a base: task_arithmetic, warp, model_stock
    single elements: ties, dare_linear, dare_ties, della, della_linear, breadcrumbs, breadcrumbs_ties, sce
    fold an adapter into its base: passthrough."""
    inputs: tuple[str, ...] = ()
    """The checkpoints: model folders, adapter folders (such as stages of a run), names of BACKBONES, hub ids, or .ckpt files."""
    output: str
    """Folder to write."""
    recipe: str | None = None
    """A YAML recipe, ours or mergekit's. It says what is merged and how; beside it stand --compat and how to compute and write."""
    base: str | None = None
    """The model that the inputs were trained from; for adapters, left out, the one they name. If it is an input too, it is t = 0."""
    t: float | None = None
    """Position between two inputs, of slerp and linear: 0 is the base if it is an input, else the first. Left out: 0.5."""
    weights: tuple[float, ...] = ()
    """One weight an input. Left out: equal ones, or 1 each for methods that add task vectors."""
    ema: float | None = None
    """A decay in [0, 1): weights of an exponential moving average over the inputs in their order, instead of --weights."""
    space: Literal["task_vector", "weight"] | None = None
    """Merge differences from the base, or the weights themselves. Left out: differences if there is a base that is no input."""
    granularity: Literal["tensor", "row", "column", "layer", "model"] = "tensor"
    """What has an angle and coefficients of its own."""
    norm: Literal["interpolate", "base", "geometric"] = "interpolate"
    """Length of a spherical result: the weighted mean of the inputs' lengths, arithmetic or geometric, or the base's."""
    antipodal: Literal["error", "linear", "base"] = "error"
    """Where inputs point in opposite directions: stop, merge along the line, or keep the base; the report says where."""
    scale: float | None = None
    """Factor of the merged task vector (lambda in mergekit); of warp, how far from the base. Left out: 1, of warp 0.5."""
    density: tuple[float, ...] = ()
    """Share of elements that ties, dare, della and breadcrumbs keep: one number, or one an input. Left out: 1."""
    gamma: tuple[float, ...] = ()
    """Share of the largest elements that breadcrumbs drops: one number, or one an input. Left out: 0.01."""
    epsilon: tuple[float, ...] = ()
    """Half the spread of della's keep probabilities: one number, or one an input. Left out: 0.15."""
    normalize: bool | None = None
    """Divide by the sum of the weights that took part. Left out: the method decides."""
    rescale: bool | None = None
    """Bring task vectors back to their size after dropping elements. Left out: the method decides."""
    select_topk: float | None = None
    """Share of elements that sce keeps. Left out: 1."""
    seed: int = 0
    """Seed of random masks and of the search."""
    extrapolate: bool = False
    """Allow t outside [0, 1] and negative weights."""
    compat: Literal["mergekit"] | None = None
    """Use mergekit's formulas in place of ours, for its numbers."""
    adapter: bool = False
    """Write a PEFT adapter: the inputs are adapters of one base, and no dense model is built."""
    rank: int | None = None
    """With --adapter: highest rank of the result. Left out: exact, the sum of the inputs' ranks."""
    search: Literal["silhouette"] | None = None
    """Search t or the weights: the best separation (suite selection) that keeps at least --retention (suite broad)."""
    retention: float = 0.9
    """With --search: the least retention of the base's geometry (debiased CKA), in [0, 1]."""
    evaluations: int = 40
    """With --search: how many candidates to score at most."""
    strategy: Literal["auto", "grid", "greedy", "evolve"] = "auto"
    """With --search: grid (then golden section), greedy soup, evolve (of two: t over the layers); auto fits the inputs."""
    dtype: Literal["float32", "bfloat16", "float16", "float64"] | None = None
    """Of the result. Left out: the base's, or the first input's."""
    layout: Literal["native", "compat"] = "native"
    """Of the written model: as sentence-transformers 6 writes it, or compat, which version 5 loads too."""
    shard_size: str = "5GB"
    """Largest weight file, such as 5GB (powers of 1000) or 5GiB (powers of 1024)."""
    memory: str = "2GiB"
    """Bytes of tensors held at once, such as 2GiB; Python and torch come on top."""
    threads: int | None = None
    """Workers. Left out: one a processor. The result does not depend on it."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to compute the coefficient methods."""
    lightning_checkpoints: bool = False
    """Read Lightning .ckpt files among the inputs (weights only; they need --base)."""
    plan: bool = False
    """Print what would be read, computed and written, and the peak memory; write nothing."""
    overwrite: bool = False
    """Replace an earlier merge in --output."""
    offline: bool = False
    """Use local and cached models only."""
    cache: str | None = None
    """Folder of downloaded models. Left out: the hub's own."""
    config: str | None = None
    """A JSON or YAML file of these settings; flags win over it."""
    json: bool = False
    """Print one JSON object as the last line of stdout."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Plain):
    """Measure the geometry of embedders: the paper's four columns, their null, larger suites, and retention against a base."""

    models: tuple[str, ...]
    """Names of BACKBONES, model folders, adapter folders, merged folders, or hub ids."""
    base: str | None = None
    """The model against which retention is measured."""
    suite: tuple[str, ...] = ("large", "held-out", "matched")
    """Suites beside the paper's: large, held-out, matched, broad, or a .jsonl / .csv file with text,label."""
    prompt: str | None = None
    """Prompt name of the model, or none. Default: what the model's bare encode() does."""
    lengths: tuple[int, ...] = ()
    """Terms a text, 10 to 400 each: the effect of sequence length on the silhouette, as numbers and one plot."""
    separator: str | None = None
    """What stands between the terms of every built-in suite. Default: a comma and a space, as in the paper."""
    baselines: bool = True
    """Rows of trivial features (last digits, differences, parity, length, characters, chance) beside the models."""
    published: bool = True
    """The paper's 14 rows beside the models, marked as published."""
    mteb: tuple[str, ...] = ()
    """MTEB result files, or folders of them, whose main scores are shown beside the models."""
    permutations: int = 1000
    """Shuffles of the labels behind the null of each silhouette."""
    draws: int = 99
    """Gaussian clouds behind the null of the KMeans columns; 0 leaves it out."""
    batch_size: int = 32
    """Texts a forward pass."""
    device: str = "auto"
    """auto, cpu, cuda."""
    device_map: str | None = None
    """Spread a model over devices as accelerate does: auto, balanced, sequential, or a JSON object. Default: one device."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Precision in which models are loaded. Default: as they are stored."""
    truncate_dim: int | None = None
    """Keep the first so many dimensions of every embedding (Matryoshka), of unit length again where the model's are."""
    embeddings: str | None = None
    """Save what was measured too: a .safetensors file, or .npy for one model and the one --suite (none: the paper's)."""
    seed: int = 0
    """Seed of KMeans, permutations and t-SNE."""
    output: str = "runs/eval"
    """Folder of the report."""
    resume: bool = False
    """Keep the finished evaluation in --output, if it was made with these settings."""
    overwrite: bool = False
    """Replace what is in --output."""
    offline: bool = False
    """Use local and cached models only."""
    cache: str | None = None
    """Folder of downloaded models. Default: the hub's own."""
    trust_remote_code: bool = False
    """Run code that a model brings. It needs owner/name@COMMIT or a local folder; no model of BACKBONES needs it."""
    pickled_weights: bool = False
    """Read a model that has pytorch_model.bin only (weights, no code), by way of a safetensors copy in the cache."""
    config: str | None = None
    """A JSON or YAML file of these settings; flags win over it."""
    json: bool = False
    """Print one JSON object as the last line of stdout."""
