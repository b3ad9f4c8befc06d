"""All checks by name."""

from tests.reliability import commits, disagreements, flips, kills, numbers, preparing, safeguards, sharing, tars
from tests.reliability.report import Check

CHECKS = {
    "killed_unet": Check(
        "UNet training, SIGKILL at a random moment: weights, averages, optimizer, cursor and history end in the bits "
        "of a run that was not killed",
        kills.killed_unet,
        3,
        1000,
    ),
    "killed_autoencoder": Check("the same for the autoencoder", kills.killed_autoencoder, 1, 200),
    "killed_prepare": Check(
        "`prepare`, SIGKILL at a random moment: the same bytes in the end, and no sample is made again that was kept",
        preparing.killed,
        3,
        100,
    ),
    "killed_workers": Check(
        "SIGKILL of its worker processes, as when memory is short: the run goes on and loses no sample",
        preparing.killed_workers,
        3,
        100,
    ),
    "shared_prepare": Check(
        "two processes of one launch, after runs of one that were killed: the bytes of one process",
        preparing.shared,
        0,
        20,
    ),
    "grown_prepare": Check("a tar is added at a random place: only its samples are made", preparing.grown, 0, 20),
    "killed_evaluation": Check(
        "`evaluate`, SIGKILL at a random moment: the same bytes in the end, and no unit of work is measured again that "
        "was kept",
        kills.killed_evaluation,
        2,
        200,
    ),
    "cut_commits": Check(
        "kill, EIO or ENOSPC at each of the points of a commit, in each stage that commits: the same command ends in "
        "the same bytes, nothing done by hand",
        commits.cut_commits,
        5,
        len(commits.CASES),
    ),
    "full_disks": Check(
        "a file system of a given size fills up: the last good state loads, needed and free bytes are told, and freed "
        "space is used",
        commits.full_disks,
        4,
        64,
    ),
    "stopped": Check(
        "SIGTERM to the group or the launcher, SIGKILL to the launcher: every step is done exactly once, never two "
        "trainers at once",
        kills.stopped,
        2,
        200,
    ),
    "orders": Check(
        "who takes which sample, when a run goes on with another world size and accumulation (the pure functions): the "
        "same order, each sample once per epoch",
        numbers.orders,
        100,
        1200,
    ),
    "world_changes": Check(
        "one process continued by two: losses within 1e-5 in float32, 2e-3 in bf16", numbers.world_changes, 1, 12
    ),
    "flipped_shard": Check("one bit of a shard: refused, file and both hashes named", flips.shards, 60, 1000),
    "flipped_latents": Check("of the latent cache", flips.latents, 60, 1000),
    "flipped_embeddings": Check("of the text cache", flips.embeddings, 60, 1000),
    "flipped_state": Check("of a resumable state: the one before it is used", flips.states, 60, 1000),
    "flipped_model": Check("of trained weights", flips.models, 60, 1000),
    "flipped_cache_object": Check("of DVC's cache: `ldm verify` names it", flips.cache_objects, 40, 1000),
    "flipped_remote_object": Check("of a DVC remote: `ldm verify --remote` names it", flips.remote_objects, 40, 1000),
    "mutated_tars": Check(
        "a user's tar, flipped, overwritten, cut, spliced, reordered, doubled, zeroed or with an edited header: it is "
        "refused with file and byte, or each sample is taken as it was, or rejected, or lost in a damage that is told",
        tars.user_tars,
        150,
        5000,
    ),
    "mutated_shards": Check(
        "the same for a shard of `prepare` or its index: refused, or read as it was",
        tars.own_shards,
        150,
        5000,
    ),
    "poisoned": Check(
        "NaN, infinity or a spike in a random row of a batch: the update leaves every weight alone, and decisions are "
        "the same after a stop",
        numbers.poisoned,
        30,
        300,
    ),
    "poisoned_ranks": Check(
        "the same on two real processes: both skip the same updates", numbers.poisoned_ranks, 0, 100
    ),
    "disagreeing_ranks": Check(
        "two processes with another state, params, code, order of samples, weights or folder of runs, or one that is "
        "killed: no mixed step, both say who has what, all gone within a minute",
        disagreements.disagreeing_ranks,
        len(disagreements.KINDS),
        50 * len(disagreements.KINDS),
    ),
    "cut_pushes": Check(
        "`dvc push` killed on the way while a clone pulls (remote with `verify: true`): the clone takes nothing "
        "corrupt; what `ldm verify --remote` says and the same push complete it",
        sharing.cut_pushes,
        1,
        50,
    ),
    "twin_clones": Check(
        "two clean clones run the tiny recipe, one killed five times: the same dvc.lock", sharing.twin_clones, 0, 1
    ),
    "default_clone": Check(
        "a clean clone of the commit, killed five times on its way: the dvc.lock of the commit, which a run that was "
        "not killed wrote on the same kind of machine",
        sharing.default_clone,
        0,
        1,
    ),
    "safeguards": Check(
        "each safeguard removed in turn: a test fails", safeguards.removed, 1, len(safeguards.SAFEGUARDS)
    ),
}
