#!/usr/bin/env python3
"""Calibrates the cost model on this machine and compares its predictions with parts and whole runs that no rate was fitted to.

    python cost.py                          about ten minutes on two quiet cores; writes cost.jsonl beside this file
    python cost.py --clock cpu --threads 1  seconds of the processor, for a machine on which others are at work
    python cost.py --tables runs --only 3   only some tables (parts, runs), and of the runs only the third

First `calibrate` measures the machine: a few operations by themselves, what a run does once (starting, a figure, a tokeniser), and small runs. Then parts are timed whose models, sizes and kinds of coder are others; then whole runs, each as a person would type
it: a command with its start, kernel, metrics and figures, of four experiments, of other models, widths, tokens, arms and seeds, and once in two processes. Every prediction is made before the run, from its words. Results are JSON lines.
"""
import argparse,json,os,platform,shlex,subprocess,sys,tempfile,time
from dataclasses import asdict
from pathlib import Path

FORWARDS = [('gpt2', 2, 4, 128), ('gpt2', 2, 1, 1024), ('pythia-70m', 2, 16, 64), ('pythia-410m', 1, 4, 128), ('qwen2.5-0.5b', 1, 2, 256), ('gemma2:384x4', 3, 8, 128), ('mistral:128x6', 5, 32, 64), ('bert-base', 1, 8, 128), ('gpt2:128x4', 3, 4, 128)]
TRAININGS = [('gpt2:192x4', 'cycle', 16, 96), ('qwen2:128x3', 'cycle', 32, 64), ('hfvit:96x4', 'cycle', 64, 17), ('gpt_neox:128x2', 'cycle', 8, 256)]
CODERS = [('topk', 768, 12288, 32, 1024, 1), ('topk', 768, 12288, 32, 4096, 1), ('topk', 1536, 6144, 64, 1024, 1), ('topk', 128, 6144, 8, 2048, 1), ('batchtopk', 768, 6144, 32, 1024, 1),
          ('topk', 512, 4096, 600, 256, 1), ('relu', 256, 1024, 32, 256, 1), ('jumprelu', 128, 1024, 16, 512, 1), ('topk', 64, 512, 8, 256, 8)]


RUNS = ['lm_sae pretrain_tokens=100000 training_tokens=100000 d_sae=2048 k=16 n_evals=4 eval_tokens=8192',
        'lm_sae model_name=llama:128x3 layer=1 vocab_size=2048 context_size=128 store_batch_size_prompts=16 architecture=batchtopk k=32 expansion_factor=8 pretrain_tokens=50000 training_tokens=60000 train_batch_size_tokens=1024 n_evals=2 eval_tokens=8192 dtype=bf16',
        'lm_sae model_name=gpt_neox:96x4 layer=2 store=true pretrain_tokens=30000 training_tokens=60000 d_sae=1536 n_evals=3 eval_tokens=4096 n_checkpoints=0',
        'lm_sae pretrain_tokens=100000 training_tokens=100000 d_sae=2048 k=16 n_evals=4 eval_tokens=8192 processes=2',
        'cycle',
        'cycle model=hfvit:64x3 epochs=8 tune_epochs=4 cycles=1 width=512 sae_epochs=20 seed=1',
        'cycle dataset=docstrings model=gpt2:32x2 train_rows=1500 max_length=64 epochs=3 tune_epochs=1 cycles=1 sae_epochs=20',
        'study arms=control,per_class seeds=0,1,2 cycles=1 width=384',
        'study model=cnn arms=control,per_example,random seeds=0,1 epochs=10 tune_epochs=5 sae_epochs=30 cycles=1',
        'pretrain arms=control,per_token seeds=0,1 pretrain_tokens=60000 training_tokens=40000 sae_tokens=40000 eval_tokens=8192',
        'pretrain model_name=llama:96x2 arms=control,l1,full seeds=3 pretrain_tokens=40000 training_tokens=60000 sae_tokens=30000 eval_tokens=8192 width=512 context_size=128']


def parts(write, m, clock, least):
    "One forward, one training step, one step of a coder"
    from sae_ception.plan import PlanConfig
    from sae_ception.rates import coder_probe,forward_probe,seconds,timed,training_probe
    from sae_ception.sae.coders import SAEConfig
    device = 'cuda' if m.cuda else 'cpu'
    def one(kind, case, make):
        try: run,work = make()
        except Exception as e: return write(table='part', kind=kind, case=case, error=f'{type(e).__name__}: {e}'[:200])
        spent = seconds(work, m)
        write(table='part', kind=kind, case=case, predicted=sum(spent.values()), measured=timed(run, least, clock), limit=max(spent, key=spent.get))
    for name,layer,batch,context in FORWARDS:
        for dtype in ('float32', 'bf16'):
            one('forward', f'{name} to block {layer}, {batch} × {context}, {dtype}', lambda: forward_probe(PlanConfig(name, layer=layer, batch_size=batch, context=context, dtype=dtype), device))
    for name,job,batch,context in TRAININGS: one('training', f'{name}, {batch} × {context}', lambda: training_probe(PlanConfig(name, job, batch_size=batch, context=context), device))
    for kind,d,width,k,batch,members in CODERS:
        one('sae', f'{kind}, {members} × {d} → {width}, k {k}, {batch} rows', lambda: coder_probe(d, SAEConfig(width=width, k=k, activation=kind), batch, members, m, device))

def runs(write, m, cpu, threads, chosen):
    "Whole runs, as commands"
    from sae_ception.cost import cost,questions,storage
    from sae_ception.rates import children
    for command in chosen:
        words = shlex.split(command)
        [(_,q)] = questions(command, 'epyc')
        table,env = cost(q, m),os.environ | dict(OMP_NUM_THREADS=str(max(1, threads//q.gpus)))
        started = [sys.executable, '-m', *(['torch.distributed.run', '--standalone', '--nproc-per-node', str(q.gpus), '-m'] if q.gpus > 1 else []), 'sae_ception', *words]
        with tempfile.TemporaryDirectory() as tmp:
            try: measured = children([*started, '--out', f'{tmp}/run'], cpu, env)
            except subprocess.CalledProcessError as e: write(table='run', name=command, error=e.stderr.decode()[-300:]); continue
            kept = sum(o.stat().st_size for o in Path(tmp, 'run').rglob('*') if o.is_file())
        write(table='run', name=command, predicted=float(table.seconds.sum()), measured=measured, bytes_predicted=int(sum(storage(q).values())), bytes=kept,
              stages={k: round(float(v), 2) for k,v in table.groupby('stage', sort=False).seconds.sum().items()}, parts={k: round(float(v), 2) for k,v in table.groupby('part', sort=False).seconds.sum().items()})


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('--out', default=str(Path(__file__).with_suffix('.jsonl')), help='file of JSON lines, written anew')
    a.add_argument('--tables', default='parts,runs')
    a.add_argument('--only', type=int, nargs='*', default=[], help='numbers of runs, counted from 1')
    a.add_argument('--machine', default='', help='a file that `calibrate` wrote; otherwise the machine is measured')
    a.add_argument('--threads', type=int, default=os.cpu_count())
    a.add_argument('--clock', default='wall', choices=['wall', 'cpu'], help='cpu: for a busy machine; only with one thread')
    a.add_argument('--least', type=float, default=.5, help='seconds for each measurement of a part')
    a = a.parse_args()
    if a.clock == 'cpu' and a.threads != 1: sys.exit('--clock cpu counts the seconds of all threads together: give --threads 1')
    os.environ['OMP_NUM_THREADS'] = str(a.threads)
    import torch
    from sae_ception.rates import calibrate,machine
    torch.set_num_threads(a.threads)
    clock,tables,began = time.perf_counter if a.clock == 'wall' else time.process_time,a.tables.split(','),time.perf_counter()
    Path(a.out).write_text('')
    def write(**row):
        line = json.dumps({k: float(f'{v:.5g}') if isinstance(v, float) else v for k,v in row.items()}, ensure_ascii=False)
        print(line, flush=True)
        with open(a.out, 'a') as f: f.write(line + '\n')
    cpu = next((o.split(':')[1].strip() for o in Path('/proc/cpuinfo').read_text().splitlines() if o.startswith('model name')), platform.processor()) if Path('/proc/cpuinfo').exists() else platform.processor()
    m = machine(a.machine) if a.machine else calibrate(least=a.least, clock=clock)
    write(table='machine', **asdict(m), cpu=cpu, clock=a.clock, torch=torch.__version__, seconds=time.perf_counter() - began, date=time.strftime('%Y-%m-%d'))
    if 'parts' in tables: parts(write, m, clock, a.least)
    if 'runs' in tables: runs(write, m, a.clock == 'cpu', a.threads, [RUNS[i - 1] for i in a.only] or RUNS)
    shown = {k: float(f'{v:.2g}') if isinstance(v, float) and v > 0 else v for k,v in asdict(m).items() if v and k not in ('name', 'note')}
    print('for MACHINES:', ', '.join(f'{k}={v}' for k,v in shown.items()))
    print(f'{time.perf_counter() - began:.0f} s')

if __name__ == '__main__': main()
