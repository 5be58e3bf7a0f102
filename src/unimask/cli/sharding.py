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
    """Write a data set as shards: a few large tar files that many processes and machines can read fast.

    --data of `unimask check`, `train` and `evaluate` accepts the folder of the shards, or some of them
    (shards/train-{0000..0099}.tar); images and order are those of the original data. Images that cannot be
    read are left out and listed. After an interruption the same command starts from the beginning.

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
