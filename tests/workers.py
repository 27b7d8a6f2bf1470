"""What the processes of tests of distributed code do (see tests.launch)."""

import os
import runpy

import numpy as np
import torch
import torch.distributed as dist
from pytorch_lightning import Callback
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from config.load import load_config
from datasets import register_dataset
from datasets.samplers import EvaluationShard
from engine.run import run_main
from evaluation.retrieval import RetrievalSet
from inference.searching.sharing import launched_processes, search_together
from losses.centroid_triplet_loss import CentroidTripletLoss
from losses.gathered_triplet import gathered_centroid_loss, gathered_triplet_loss
from modelling import evaluation
from modelling.averaging import PLAIN
from modelling.evaluation import evaluate_protocols
from tests.modelling.test_computation import batch, make_model
from tests.modelling.test_computation import fit as fit_once
from tests.modelling.test_optimization import batches, fit
from tests.small import small_config
from train_base_model import BaseModel
from train_ctl_model import CTLModel
from utils import distributed
from utils.distances import euclidean_dist
from utils.errors import UserError

CENTROIDS = {"MODEL.USE_CENTROIDS": True}
# queries, gallery images, identities, options; 2600 queries are three tiles, the least that is shared out
EVALUATIONS = {
    "instances": (2600, 150, 40, {}),
    "cosine": (2600, 150, 40, {"SOLVER.DISTANCE_FUNC": "cosine"}),
    "centroids": (2600, 150, 40, CENTROIDS),
    "centroids without cameras": (2600, 150, 40, CENTROIDS | {"MODEL.KEEP_CAMID_CENTROIDS": False}),
    "query expansion": (2600, 150, 40, {"TEST.QUERY_EXPANSION": 3}),
    "re-ranking": (40, 90, 12, CENTROIDS | {"TEST.RERANK": True, "TEST.RERANK_K1": 5, "TEST.RERANK_K2": 2}),
    "re-ranking by several products": (1400, 800, 90, {"TEST.RERANK": True}),
    "uneven": (5, 13, 4, {}),
    "fewer than processes": (1, 1, 1, {}),
    "matches on the last process only": (2600, 150, -1, {}),
    "no match": (3, 9, 0, {}),
}


def small_evaluation(num_query, num_gallery, identities, options):
    """Embeddings with many equal distances; with ``identities`` 0 or -1 no query or only the last one has a match."""
    generator = torch.Generator().manual_seed(num_query + num_gallery)
    size = (num_query + num_gallery,)
    embeddings = torch.randint(-2, 3, (*size, 6), generator=generator) + torch.tensor([5.0, 0, 0, 0, 0, 0])
    pids = torch.randint(0, max(identities, 1), size, generator=generator)
    camids = torch.randint(0, 3, size, generator=generator)
    if identities <= 1:
        camids[:num_query], camids[num_query:] = 0, 1
    if identities <= 0:
        pids[:num_query] = 7
        pids[num_query - 1] += 7 * identities
    return (embeddings, pids, camids), num_query, small_config(**options)


def joint_rows(count):
    """A weight to learn, rows, labels and which are real."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(4, 3, generator=generator).requires_grad_()
    labels = torch.randint(0, 3, (count,), generator=generator)
    return weight, torch.randn(count, 4, generator=generator), labels, torch.arange(count) % 4 != 2


def meet():
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    return dist.get_rank(), dist.get_world_size()


def pass_rows_around(counts):
    """Every function of utils.distributed, on ``counts[rank]`` rows."""
    rank, world = meet()
    distributed.CHUNK_BYTES = 40  # several chunks, the last one shorter
    start = sum(counts[:rank])
    own = range(start, start + counts[rank])
    numbers = torch.tensor(own, dtype=torch.int64)
    rows = torch.tensor([[i, i + 0.5, -i] for i in own], dtype=torch.float64).reshape(-1, 3)
    total = sum(counts)
    seen = {"gathered": distributed.gather_rows(rows), "numbers": distributed.gather_rows(numbers)}
    # As a sampler that pads: the last process repeats the first sample; every process sends its rows backwards.
    padded = torch.cat((numbers, numbers.new_zeros(1))) if rank == world - 1 else numbers
    (seen["ordered"],) = distributed.gather_in_order(padded.flip(0), total, padded.flip(0) * 10)
    try:
        distributed.gather_in_order(numbers, total + 2, numbers)
    except UserError as error:
        seen["missing"] = str(error)
    seen["first"] = distributed.of_first_process(lambda: ("of", rank))
    try:
        distributed.of_first_process(_refuse)
    except UserError as error:
        seen["refused"] = str(error)
    seen["is first"] = distributed.is_first_process()
    buffer = torch.full((3,), float(rank))
    distributed.broadcast_from_first([buffer])
    seen["buffer"] = buffer
    return seen


def search_in_parts(files, searches):
    """What each search finds; every process opens the gallery of its rank, or the last one."""
    rank, _ = meet()
    found = []
    for query, options in searches:
        try:
            found.append(search_together(query, np.load(files[: rank + 1][-1], mmap_mode="r"), **options))
        except UserError as error:
            found.append(str(error))
    return found


def meet_by_slurm(node_list):
    """The number of this process and of all, by the variables of srun in place of torchrun's."""
    names = {"SLURM_PROCID": "RANK", "SLURM_NTASKS": "WORLD_SIZE", "SLURM_STEP_NUM_TASKS": "WORLD_SIZE"}
    os.environ |= {name: os.environ[old] for name, old in names.items()}
    for name in (*names.values(), "MASTER_ADDR", "TORCHELASTIC_RUN_ID"):
        os.environ.pop(name, None)
    os.environ |= {"SLURM_STEP_NODELIST": node_list, "SLURM_JOB_NAME": "search"}
    with launched_processes() as processes:
        return processes.rank, processes.count


def _refuse():
    raise UserError(f"refused by {dist.get_rank()}")


def average_by_name(values):
    """The means of ``values[rank]`` for each rank: name -> number; and those of no values at all."""
    rank, _ = meet()
    own = {name: torch.tensor(number) for name, number in values[rank].items()}
    means = distributed.mean_over_processes(own)
    return list(means.items()), distributed.mean_over_processes({})


def mine_everywhere(counts):
    """Averaged gradients of a linear network under the gathered triplet loss, as DDP averages them; with the loss."""
    rank, world = meet()
    weight, rows, labels, real = joint_rows(sum(counts))
    own = slice(sum(counts[:rank]), sum(counts[: rank + 1]))
    loss, dist_ap, _ = gathered_triplet_loss(rows[own] @ weight, labels[own], real[own], 0.3, euclidean_dist)
    loss.backward()
    dist.all_reduce(weight.grad)
    return weight.grad / world, loss.detach(), len(dist_ap)


def centroid_rows(identities, num_images):
    """A weight to learn, then rows, labels and which are real of each process; ``identities[rank]`` are its own."""
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn(4, 3, generator=generator).requires_grad_()
    batches = []
    for own, count in zip(identities, num_images, strict=True):
        labels = torch.tensor(own).repeat_interleave(count)
        batches.append((torch.randn(len(labels), 4, generator=generator), labels, torch.arange(len(labels)) % 7 != 5))
    return weight, batches


def centroids_everywhere(identities, num_images, margin, dist_func):
    """Averaged gradients of a linear network under the gathered centroid loss, with its results on this process."""
    rank, world = meet()
    weight, batches = centroid_rows(identities, num_images)
    rows, labels, real = batches[rank]
    result = gathered_centroid_loss(CentroidTripletLoss(margin, dist_func), rows @ weight, labels, real)
    result.loss.backward()
    dist.all_reduce(weight.grad)
    return weight.grad / world, torch.stack([value.detach() for value in result])


def evaluate_together(cases):
    """The results of each case of small_evaluation, with the embeddings shared out in batches of 7."""
    rank, world = meet()
    results = []
    for case in cases:
        rows, num_query, hparams = small_evaluation(*EVALUATIONS[case])
        shard = list(EvaluationShard(rows[0], 7, world, rank))
        arrays = (array[shard] for array in rows)
        gathered = distributed.gather_in_order(torch.tensor(shard, dtype=torch.int64), len(rows[0]), *arrays)
        assert torch.equal(gathered[0], rows[0])
        try:
            whole = RetrievalSet.of_rows(*gathered, num_query)
            results.append(evaluate_protocols(whole, hparams, distributed.running_processes()))
        except UserError as error:
            results.append(str(error))
    return results


class _Losses(nn.Module):
    """The sum of a model's weighted losses, as its training step computes them."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        model.optimize = lambda losses, statistics: sum(losses.values())

    def forward(self, *batch):
        return self.model.training_step(batch, 0)


def find_own_images(files):
    """The groups of own images; only the first process may read the files."""
    rank, _ = meet()
    if rank:
        evaluation.find_self_matches = evaluation.find_copies = _refuse
    rows = torch.zeros(len(files), 2), torch.zeros(len(files)), torch.tensor([0, 0, 1, 1])
    retrieval = RetrievalSet.of_rows(*rows, 2, files)
    found = [
        evaluation.OwnImages().leave_out(retrieval, small_config(), "test", distributed.running_processes(), among)
        for among in (None, files)  # of one division, of repeated draws
    ]
    return [(each.self_matches.queries.tolist(), each.self_matches.gallery.tolist()) for each in found]


def average_gradients(method_name, options, gather):
    """Gradients under DDP at the second step, and the mean of those of each process' batch computed alone."""
    rank, world = meet()
    method = {"CTLModel": CTLModel, "BaseModel": BaseModel}[method_name]
    torch.manual_seed(rank)  # DDP must make the networks equal
    cfg = small_config(**options, **{"SOLVER.GATHER_NEGATIVES": gather})
    losses = _Losses(method(cfg, num_classes=9).train())
    wrapped = DistributedDataParallel(losses)
    for _ in range(2):  # a parameter without gradient is noticed at the second
        losses.zero_grad()
        wrapped(*_batch(rank)).backward()
    found = {name: p.grad.clone() for name, p in losses.named_parameters() if p.requires_grad}
    losses.model.hparams.SOLVER.GATHER_NEGATIVES = False
    losses.zero_grad()
    for other in range(world):
        (losses(*_batch(other)) / world).backward()
    expected = {name: p.grad.clone() for name, p in losses.named_parameters() if p.requires_grad}
    return found, expected


class _Gradients(Callback):
    """The gradients of the classifier after each batch."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append(pl_module.fc_query.weight.grad.clone())


def train_in_groups(options):
    """Train with DDP on five batches that no other process has.

    Returns:
        The gradients after each batch; the model after the training; what a checkpoint of it holds.
    """
    torch.set_num_threads(1)
    model, gradients = make_model(**options), _Gradients()
    ddp = {"strategy": "ddp", "devices": 2, "use_distributed_sampler": False}
    trainer = fit(model, batches(5, first=10 * int(os.environ["RANK"])), gradients, **ddp)
    checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
    kept = {name: checkpoint.get(name) for name in ("state_dict", PLAIN, "global_step")}
    return gradients.seen, model.state_dict(), kept


def _batch(rank):
    generator = torch.Generator().manual_seed(100 + rank)
    images = torch.randn(8, 3, 32, 16, generator=generator)
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]) + 3 * rank  # one identity is on both processes
    return images, labels, torch.zeros(8), torch.tensor([True] * 7 + [rank == 0])


class RecordingModel(CTLModel):
    """Notes the samples of each step, and what it logs and keeps at the ends of epochs."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.steps, self.own_means, self.logged, self.buffers_seen = [], [], [], []

    def training_step(self, batch, batch_idx):
        images, pids, _, is_real = batch[:4]
        rows = [
            (sum_, pid)
            for sum_, pid in zip(images.sum((1, 2, 3))[is_real].tolist(), pids[is_real].tolist(), strict=True)
        ]
        self.steps.append((self.current_epoch, rows))
        return super().training_step(batch, batch_idx)

    def on_train_epoch_end(self):
        others = [output["other"] | {"loss": output["loss"]} for output in self.train_outputs]
        records = self.losses_dict | {name: [other[name] for other in others] for name in others[0]}
        self.own_means.append({name: torch.stack(values).mean().item() for name, values in records.items()})
        super().on_train_epoch_end()

    def _log_epoch(self, metrics):
        self.logged.append(dict(metrics))
        super()._log_epoch(metrics)

    def validation_step(self, batch, batch_idx):
        if not self.trainer.testing:
            self.buffers_seen.append(self.bn.running_mean.clone())
        return super().validation_step(batch, batch_idx)


def train_and_test(train_options, test_options):
    """A training if asked for, then a test of its newest checkpoint, or of the one given, for each set of options.

    Returns:
        What the model noted in training, the metrics of the training and of each test.
    """
    torch.set_num_threads(1)
    notes, trained = None, None
    if train_options is not None:
        model = _Kept(RecordingModel)
        (trained,) = run_main(load_config("", train_options), model, "train")
        notes = {name: getattr(model.made, name) for name in ("steps", "own_means", "logged", "buffers_seen")}
    tested = [run_main(load_config("", options), CTLModel, "test")[0] for options in test_options]
    return notes, trained, tested


class UnusedModel(CTLModel):
    """Has a parameter that gets no gradient."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.unused = nn.Linear(2, 2)


def train_unused(options):
    """The metrics of a training with a parameter that gets no gradient."""
    torch.set_num_threads(1)
    return run_main(load_config("", options), UnusedModel, "unused")[0]


def evaluate_program(program, kind, options):
    """The metrics of a test of the data set ``kind`` that a file of tests/programs defines."""
    torch.set_num_threads(1)
    register_dataset("of_program", runpy.run_path(program)[kind])
    return run_main(load_config("", options), CTLModel, "test")[0]


class _Kept:
    """A model class that keeps what it makes."""

    def __init__(self, method):
        self.method = method

    def __call__(self, *args, **kwargs):
        self.made = self.method(*args, **kwargs)
        return self.made


def train_frozen():
    """Parameters at the start and after each of two epochs, of which the first leaves the backbone frozen."""
    torch.set_num_threads(1)
    model = make_model(**{"SOLVER.FREEZE_EPOCHS": 1})
    states = []

    class Weights(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            states.append({name: p.detach().clone() for name, p in pl_module.named_parameters()})

        on_train_end = on_train_epoch_start

    images, *rest = batch()
    images = images + 0.1 * int(os.environ["RANK"])  # a batch of its own in each process
    fit_once(model, (images, *rest), Weights(), copies=4, strategy="ddp", devices=2)
    return states
