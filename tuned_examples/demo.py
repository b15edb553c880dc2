"""Trains on `data/cartpole-mixed`, evaluates at several target returns, and plots the result.

`python tuned_examples/demo.py [--data FOLDER] [--updates N] [--seed N] [--out FOLDER]`
"""

import argparse
import logging
from pathlib import Path

import ray
import torch
from tqdm import tqdm

from rllib_dt import DTConfig, DTModelConfig
from rllib_dt.plots import plot_targets, target_table

TARGETS = [50.0, 100.0, 200.0, 350.0]
UPDATES, UPDATES_PER_ITERATION = 2500, 25
ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "data" / "cartpole-mixed"


def make_config(data: str) -> DTConfig:
    """Returns the settings for training on recordings at a path."""
    return (
        DTConfig()
        .environment("CartPole-v1")
        .offline_data(input_=data, dataset_num_iters_per_learner=UPDATES_PER_ITERATION)
        .rl_module(
            model_config=DTModelConfig(
                context_length=10, hidden_size=64, n_layer=2, n_head=1, max_ep_len=500
            )
        )
        .training(
            lr=1e-3,
            train_batch_size_per_learner=64,
            warmup_steps=100,
            grad_clip=1.0,
            return_scale=100.0,
        )
        .env_runners(num_envs_per_env_runner=20)
        .evaluation(target_returns=TARGETS, evaluation_duration=20)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=str(DATA))
    parser.add_argument("--updates", type=int, default=UPDATES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=str(ROOT / "results" / "demo"))
    args = parser.parse_args()
    out = Path(args.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    ray.init("local", num_cpus=max(2, torch.get_num_threads()), include_dashboard=False)
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    algo = make_config(args.data).debugging(seed=args.seed, log_level="ERROR").build_algo()
    with tqdm(total=args.updates, unit="update", desc="training") as bar:
        while bar.n < args.updates:
            learner = algo.train()["learners"]["default_policy"]
            bar.update(int(learner["num_updates"]))
            bar.set_postfix(loss=f"{learner['action_loss']:.4f}")
    print(f"evaluating {TARGETS} …")
    by_target = algo.evaluate()["env_runners"]["by_target"]
    print(target_table(by_target))
    plot = out / "targets.png"
    plot_targets(by_target, algo.offline_data.returns, plot)
    checkpoint = algo.save_to_path(out / "checkpoint")
    print(f"plot:       {plot}\ncheckpoint: {checkpoint}  (DT.from_checkpoint reads it)")
    algo.stop()
    ray.shutdown()


if __name__ == "__main__":
    main()
