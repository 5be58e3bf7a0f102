"""`unimask shards`."""

import dataclasses

import unimask
from unimask.cli import output as show
from unimask.cli.failures import check_folder, naming
from unimask.cli.options import checking, sharding, shared


def shards(
    data: shared.Data,
    output: sharding.ShardFolder,
    task: checking.LabelledTask = None,
    megabytes: sharding.Megabytes = 256,
    follow_outside: shared.FollowOutside = False,
    as_json: shared.Json = False,
) -> None:
    """Write a data set as shards: few large tar files, which many processes and machines read fast.

    --data of `unimask check`, `train` and `evaluate` takes the folder of the shards, or some of them
    (shards/train-{0000..0099}.tar), and gives the same as the data themselves, in the same order. Images that
    cannot be read are left out, and named. Where it is stopped, the same command starts again.

    Examples:
      unimask shards --data my_data --output my_shards
      unimask train --data my_shards
    """
    check_folder(output.absolute().parent)
    with naming(data), show.counting("writing") as counted:
        written = unimask.write_shards(
            data,
            output,
            task.value if task else None,
            megabytes=megabytes,
            follow_outside=follow_outside,
            progress=counted,
        )
    for sentence in written.left_out:
        show.errors.print(f"left out: {sentence}", markup=False, highlight=False)
    if as_json:
        show.show_json({**dataclasses.asdict(written), "output": str(written.output)})
        return
    for split, count in written.images.items():
        number = len(written.shards[split])
        show.show_line(f"{split}: {count:,} images in {number:,} shard{'s' * (number != 1)}")
    show.show_line(f"train on them: unimask train --data {written.output} --task {written.task}")
