#!/usr/bin/env python3
"""Calibrates the cost model on this machine and compares its predictions with runs that no rate was fitted to.

    python cost.py                          about six minutes on two quiet cores; writes cost.jsonl beside this file
    python cost.py --clock cpu --threads 1  seconds of the processor, for a machine on which others are at work
    python cost.py --tables parts           only some of: parts, runs

First `calibrate` measures the machine: a few operations by themselves, and small runs. Then parts are timed whose models, sizes and kinds of coder are others; then whole runs through the public functions: coders on a language model while it
runs, and from a store; and a study of two arms and two seeds. Every prediction comes from `cost` or from the counted work, before the run. Results are JSON lines.
"""
import argparse,json,os,platform,sys,tempfile,time
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

FORWARDS = [('gpt2', 2, 4, 128), ('gpt2', 2, 1, 1024), ('pythia-70m', 2, 16, 64), ('pythia-410m', 1, 4, 128), ('qwen2.5-0.5b', 1, 2, 256), ('gemma2:384x4', 3, 8, 128), ('mistral:128x6', 5, 32, 64), ('bert-base', 1, 8, 128), ('gpt2:128x4', 3, 4, 128)]
TRAININGS = [('gpt2:192x4', 'cycle', 16, 96), ('qwen2:128x3', 'cycle', 32, 64), ('hfvit:96x4', 'cycle', 64, 17), ('gpt_neox:128x2', 'cycle', 8, 256)]
CODERS = [('topk', 768, 12288, 32, 1024, 1), ('topk', 768, 12288, 32, 4096, 1), ('topk', 1536, 6144, 64, 1024, 1), ('topk', 128, 6144, 8, 2048, 1), ('batchtopk', 768, 6144, 32, 1024, 1),
          ('topk', 512, 4096, 600, 256, 1), ('relu', 256, 1024, 32, 256, 1), ('jumprelu', 128, 1024, 16, 512, 1), ('topk', 64, 512, 8, 256, 8)]


def parts(write, m, clock, least):
    "One forward, one training step, one step of a coder"
    from sae_ception.cost import CostConfig,probe,seconds,timed
    def one(kind, case, q, d=0):
        try: run,work = probe(q, kind, m, 'cuda' if m.cuda else 'cpu', d)
        except Exception as e: return write(table='part', kind=kind, case=case, error=f'{type(e).__name__}: {e}'[:200])
        spent = seconds(work, m)
        write(table='part', kind=kind, case=case, predicted=sum(spent.values()), measured=timed(run, least, clock), limit=max(spent, key=spent.get))
    for name,layer,batch,context in FORWARDS:
        for dtype in ('float32', 'bf16'): one('forward', f'{name} to block {layer}, {batch} × {context}, {dtype}', CostConfig(name, layer=layer, batch_size=batch, context=context, dtype=dtype, machine='epyc'))
    for name,job,batch,context in TRAININGS: one('training', f'{name}, {batch} × {context}', CostConfig(name, job, batch_size=batch, context=context, machine='epyc'))
    for kind,d,width,k,batch,members in CODERS:
        one('sae', f'{kind}, {members} × {d} → {width}, k {k}, {batch} rows', CostConfig('gpt2', width=width, k=k, sae_batch=batch, coders=members, architecture=kind, machine='epyc'), d)


@contextmanager
def spent(clock):
    "Seconds of the block, in a list"
    out,start = [],clock()
    yield out
    out.append(clock() - start)

def compare(write, name, q, m, measured, stages=None):
    "A whole run beside its prediction"
    from sae_ception.cost import cost
    table = cost(q, m)
    told = table.seconds[table.stage.isin(stages)] if stages else table.seconds
    rows = table[table.stage.isin(stages)] if stages else table
    write(table='run', name=name, predicted=float(told.sum()), measured=measured, parts={o.part: round(float(o.seconds), 3) for o in rows.groupby('part', sort=False).seconds.sum().reset_index().itertuples()})

def on_text(write, m, clock, tmp, tokens=100_000):
    "Coders on a language model, while it runs and from a store"
    from sae_ception.cost import CostConfig
    from sae_ception.corpus import docstrings
    from sae_ception.huggingface import load_lm,train_tokenizer
    from sae_ception.metrics.downstream import intervention_sweep
    from sae_ception.pretraining import held_out_batches
    from sae_ception.rows import LiveRows
    from sae_ception.sae.coders import SAEConfig
    from sae_ception.sae.training import Coder,SAETrainConfig,train_on
    from sae_ception.store import write_store
    from sae_ception.tokens import TokenStream
    tokenizer = train_tokenizer(docstrings('numpy').texts[:2000], 2048)
    for name,layer,width,k,dtype,n in (('gpt2:256x4', 2, 4096, 32, 'float32', 1), ('llama:384x3', 2, 2048, 16, 'bf16', 3)):
        model,site,held = load_lm(name, tokenizer, dtype=dtype)[0],f'layers.{layer}.resid_post',4096
        model.config.save_pretrained(folder := f'{tmp}/{name.replace(":", "_")}') # its vocabulary is that of the tokenizer
        stream = TokenStream('docstrings', tokenizer, context=128)
        batches = held_out_batches(stream, held)
        coders = [Coder(site, sae=SAEConfig(width=width, k=k), train=SAETrainConfig(rows=tokens, batch_size=1024), seed=i) for i in range(n)]
        q = CostConfig(folder, layer=layer, width=width, k=k, coders=n, tokens=tokens, context=128, batch_size=16, sae_batch=1024, buffer=16_384, held_out=held, evals=4, dtype=dtype, machine='epyc')
        measure = lambda coder, sae, row: dict(loss=intervention_sweep(model, sae, site, batches[:2]).loss[0])
        def live():
            found = train_on(LiveRows(model, stream, [site], 16_384, contexts=16), coders, every=-(-tokens//1024)//4, held_out=held, measure=measure, device='cpu')
            for o in found: intervention_sweep(model, o.sae, site, batches, [k//4, k//2, k//8])
        with spent(clock) as took: live()
        compare(write, f'{n} coder{"s"*(n > 1)} on {name}, {dtype}, {tokens:,} tokens', q, m, took[0])
        stored = CostConfig(**{**asdict(q), 'store': True, 'evals': 0})
        with spent(clock) as took: store = write_store(f'{tmp}/{layer}{n}', model, stream, [site], tokens, held + 512)
        compare(write, f'… written to a store', stored, m, took[0], ['storing activations'])
        with spent(clock) as took:
            for o in train_on(store.rows([site]), coders, every=10**6, held_out=held, device='cpu'): intervention_sweep(model, o.sae, site, batches, [k//4, k//2, k//8])
        compare(write, f'… trained from the store', stored, m, took[0], ['training'])

def a_study(write, m, clock, tmp):
    "Two arms, two seeds: a transformer that reads pictures, and one that reads text"
    from sae_ception.cost import CostConfig
    from sae_ception.cycle import CycleConfig,run_cycles
    from sae_ception.data import load_task
    from sae_ception.models import make_model
    from sae_ception.sae.coders import SAEConfig
    from sae_ception.sae.training import SAETrainConfig
    from sae_ception.training import TrainConfig
    task = load_task('digits')
    make_model('hfvit:64x2', task, 0) # imports take ten seconds
    train,held = (len(task.splits[o]) for o in ('train', 'test'))
    tune = lambda n: TrainConfig(epochs=n, batch_size=64, device='cpu')
    for model,arms,seeds,cycles in (('hfvit:64x4', ('per_class', 'control'), (0, 1), 1), ('hfvit:96x2', ('per_example', 'control', 'random'), (0,), 2)):
        config = CycleConfig(model=model, arms=arms, seeds=seeds, cycles=cycles, baseline=tune(8), tune=tune(4), sae=SAEConfig(width=512, k=8), sae_train=SAETrainConfig(epochs=20))
        q = CostConfig(model, 'cycle', layer=int(model[-1]) - 1, width=512, k=8, batch_size=64, context=17, sae_batch=256, rows=train, examples=train, held_out=held, epochs=8, tune_epochs=4, sae_epochs=20, arms=len(arms), seeds=len(seeds),
                       cycles=cycles, together=True, machine='epyc')
        with spent(clock) as took: run_cycles(task, config, f'{tmp}/{model.replace(":", "_")}')
        compare(write, f'study of {model} on digits: {len(arms)} arms, {len(seeds)} seed{"s"*(len(seeds) > 1)}, {cycles} cycle{"s"*(cycles > 1)}', q, m, took[0])


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('--out', default=str(Path(__file__).with_suffix('.jsonl')), help='file of JSON lines, written anew')
    a.add_argument('--tables', default='parts,runs')
    a.add_argument('--threads', type=int, default=os.cpu_count())
    a.add_argument('--clock', default='wall', choices=['wall', 'cpu'], help='cpu: for a busy machine; only with one thread')
    a.add_argument('--least', type=float, default=.5, help='seconds for each measurement of a part')
    a = a.parse_args()
    if a.clock == 'cpu' and a.threads != 1: sys.exit('--clock cpu counts the seconds of all threads together: give --threads 1')
    os.environ['OMP_NUM_THREADS'] = str(a.threads)
    import torch
    from sae_ception.cost import calibrate
    torch.set_num_threads(a.threads)
    clock,tables,began = time.perf_counter if a.clock == 'wall' else time.process_time,a.tables.split(','),time.perf_counter()
    Path(a.out).write_text('')
    def write(**row):
        line = json.dumps({k: float(f'{v:.5g}') if isinstance(v, float) else v for k,v in row.items()}, ensure_ascii=False)
        print(line, flush=True)
        with open(a.out, 'a') as f: f.write(line + '\n')
    cpu = next((o.split(':')[1].strip() for o in Path('/proc/cpuinfo').read_text().splitlines() if o.startswith('model name')), platform.processor()) if Path('/proc/cpuinfo').exists() else platform.processor()
    m = calibrate(least=a.least, clock=clock)
    write(table='machine', **asdict(m), cpu=cpu, threads=a.threads, clock=a.clock, torch=torch.__version__, seconds=time.perf_counter() - began, date=time.strftime('%Y-%m-%d'))
    if 'parts' in tables: parts(write, m, clock, a.least)
    with tempfile.TemporaryDirectory() as tmp:
        if 'runs' in tables:
            on_text(write, m, clock, tmp)
            a_study(write, m, clock, tmp)
    print(f'{time.perf_counter() - began:.0f} s')

if __name__ == '__main__': main()
