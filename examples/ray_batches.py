"""A hundred rows answered on Ray Data, and two judged by a DSPy program, in actors whose model computes a
batch together. Run it where Ray is (`make ray`): target/ray/bin/python examples/ray_batches.py"""

import dspy
import ray

import tallow
import tallow.ray

THREADS = 1

ray.init("local", num_cpus=3, include_dashboard=False, object_store_memory=200_000_000, log_to_driver=False)
numbers = ray.data.from_items(
    [{"id": n, "prompt": f"{n}, {n + 1}, {n + 2},"} for n in range(100)], override_num_blocks=2
)

# Ray counts CPUs and fences nobody in, so `threads` and `num_cpus` are the same number. On a machine of one's
# own: one actor, with all its threads, for weights, cache and batch are shared in it.
answered = numbers.map_batches(
    tallow.ray.Generate,
    fn_constructor_args=("smollm2",),
    fn_constructor_kwargs={
        "load": {"threads": THREADS},
        "temperature": 0,
        "max_tokens": 6,
        "regex": r" \d{1,3},",
    },
    compute=ray.data.ActorPoolStrategy(size=1),
    num_cpus=THREADS,
    batch_size=50,
).take_all()
right = sum(row["answer"].strip(" ,") == str(row["id"] + 3) for row in answered)
print(f"{len(answered)} rows, {right} of them right")

# A program travels with its language model, which is loaded once in the actor. Its format is enforced, so a
# row cannot fail for want of one (whether such a small model is right is another matter); what fails for
# another reason is told in the column "error".
program = dspy.Predict("review: str -> is_positive: bool")
program.set_lm(tallow.LM("smollm2", threads=THREADS, temperature=0.0, max_tokens=40))
reviews = ray.data.from_items(
    [{"review": "A quiet room and the best breakfast in town."}, {"review": "Cold soup, and nobody came."}]
)
judged = reviews.map_batches(
    tallow.ray.Program,
    fn_constructor_args=(program,),
    fn_constructor_kwargs={"inputs": ["review"], "outputs": ["is_positive"], "on_error": "keep"},
    compute=ray.data.ActorPoolStrategy(size=1),
    num_cpus=THREADS,
    batch_size=2,
)
for row in judged.take_all():
    print(row)
