"""What a training step costs when processes share its rows or its features; JSON lines

    torchrun --standalone --nproc-per-node 2 spread.py [--steps 12] [--batch 1024] [--dim 768] [--widths 4096,16384]

`alone` is each process by itself with the whole batch, at the same time; seconds are the smallest of the steps, CPU seconds are those of the first process."""
import argparse,json,time

import torch

from sae_ception.core import generator,pick_device
from sae_ception.processes import join,leads,ranks,share,wait
from sae_ception.sae.coders import SAE,SAEConfig
from sae_ception.sae.engine import Group,SAETrainConfig

def steps(how, width, a, x):
    "Seconds and CPU seconds of each step"
    sae = SAE(a.dim, SAEConfig(width=width, activation=a.activation, k=32))
    group,found = Group((sae.part(how) if how != 'alone' else sae).to(x.device), SAETrainConfig(batch_size=a.batch, init='plain'), [0], 1000),[]
    group.begin(x[:2048])
    sync = torch.cuda.synchronize if x.is_cuda else lambda: None
    for i in range(a.steps):
        batch = group.units(x[i*a.batch:(i+1)*a.batch][share(a.batch) if how == 'rows' else slice(None)])
        wait(); sync()
        t,cpu = time.perf_counter(),time.process_time()
        group.feed(*batch, a.batch)
        sync()
        found.append((time.perf_counter() - t, time.process_time() - cpu))
    return [min(o) for o in zip(*found[2:])]

p = argparse.ArgumentParser()
for name,value in dict(steps=12, batch=1024, dim=768).items(): p.add_argument(f'--{name}', type=int, default=value)
for name,value in dict(widths='4096,16384', activation='topk', device='auto').items(): p.add_argument(f'--{name}', default=value)
a = p.parse_args()
join()
x = torch.randn(a.batch*a.steps, a.dim, generator=generator(0, 'rows')).to(pick_device(a.device))
for width in map(int, a.widths.split(',')):
    for how in ('alone', 'rows', 'features'):
        seconds,cpu = steps(how, width, a, x)
        # numbers that a process sends a step: gradients and counts; or k candidates and the reconstruction of each row, and one sum
        sent = dict(alone=0, rows=2*width*a.dim + 2*width + a.dim + 2, features=a.batch*(32 + a.dim) + a.dim + 1)[how]
        if leads(): print(json.dumps(dict(how=how, processes=ranks(), width=width, batch=a.batch, dim=a.dim, activation=a.activation, threads=torch.get_num_threads(), device=x.device.type, seconds=round(seconds, 4), cpu=round(cpu, 4), megabytes=round(4e-6*sent, 2))), flush=True)
