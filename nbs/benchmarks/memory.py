#!/usr/bin/env python3
"""Measures what training needs in memory, beside what `plan` tells. Every line is one case, as JSON.

    python memory.py memory.jsonl                     all cases (a quarter of an hour of two cores, at most 4 GB at a time)
    python memory.py memory.jsonl --only slices       those whose name contains a word
    python memory.py memory.jsonl --runs              whole cycles by the command, from outside
    python memory.py memory.jsonl --writing           a model in slices is written, all at once and file by file (5 GB of memory)

Cases run alone or in two processes of torchrun. Before anything is measured, a tiny model does all that the case does, so that libraries are loaded; what is resident then is subtracted.
Then the model is read from disk and trained for two steps. The most that was resident at any time of each is told by Linux (VmHWM, set back before), of the process that needed most.

Whole cycles are started as a person starts them, and the memory of each kernel that is anonymous or shared (not pages of files, which the system can drop) is read every 10 ms. What the same command takes at the same stage with a tiny model is subtracted.
"""
import argparse,ctypes,gc,json,os,subprocess,sys,tempfile,time
from pathlib import Path

CASES = {}
def case(name, model, job='pretrain', n=1, **facts): CASES[name] = dict(name=name, model=model, job=job, n=n) | dict(batch_size=4, context=32) | facts
for kind in ('gpt2', 'gpt_neox', 'llama', 'gemma2'):
    case(f'{kind}', f'{kind}:512x12')
    case(f'{kind}, slices', f'{kind}:512x12', n=2, shards=2)
    case(f'{kind}, slices, recomputed', f'{kind}:512x12', n=2, shards=2, checkpointing=True, batch_size=8)
case('llama, recomputed', 'llama:512x12', checkpointing=True, batch_size=16)
case('gpt_neox, accumulated', 'gpt_neox:512x12', batch_size=8, accumulation=4)
case('gpt2, activations', 'gpt2:256x8', batch_size=32, context=64)
case('gpt_neox, bf16', 'gpt_neox:512x12', precision='bf16')
case('llama, bf16, slices', 'llama:512x12', n=2, shards=2, precision='bf16')
case('gpt2, copies', 'gpt2:512x12', n=2)
case('llama, copies, accumulated', 'llama:512x12', n=2, accumulation=2)
case('gpt_neox, slices, accumulated', 'gpt_neox:512x12', n=2, shards=2, accumulation=2, batch_size=8)
case('gemma2, bf16, slices, recomputed, accumulated', 'gemma2:512x12', n=2, shards=2, precision='bf16', checkpointing=True, accumulation=2, batch_size=8)
case('llama, with a checkpoint', 'llama:512x12', save=True)
case('llama, slices, with a checkpoint', 'llama:512x12', n=2, shards=2, save=True)
case('gpt2, classifier', 'gpt2:512x12', 'cycle')
case('llama, classifier, slices', 'llama:512x12', 'cycle', n=2, shards=2)
case('gpt_neox, classifier, from the site on', 'gpt_neox:512x12', 'cycle', part='from_site', layer=8)
VOCAB,SMALL = 8000,'32x2'
RUNS = {f'{kind}, cycle, {how}': dict(model=f'{kind}:512x12', n=n, shards=shards) for kind in ('llama', 'gemma2') for how,n,shards in (('one process', 1, 1), ('copies', 2, 1), ('slices', 2, 2))}
RUN = dict(batch_size=4, context=32, width=512, k=8, rows=12, sae_batch=12)

def of(name): return next(int(o.split()[1])*1024 for o in open('/proc/self/status') if o.startswith(name))
def settle(): gc.collect(); ctypes.CDLL('libc.so.6').malloc_trim(0)

class Most:
    "The most that is resident inside the block, in bytes"
    def __enter__(self): settle(); open('/proc/self/clear_refs', 'w').write('5'); self.before = of('VmRSS'); return self
    def __exit__(self, *_): self.bytes = of('VmHWM')

def save(model, folder):
    "A new model on disk, as one that was downloaded: in files of 20 MB"
    import torch
    from transformers import AutoModelForCausalLM
    from sae_ception.huggingface import fresh_config,quietly,train_tokenizer
    config = fresh_config(model, vocab_size=300 if SMALL in model else VOCAB, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    for o in ('attn_pdrop', 'attention_dropout'):
        if hasattr(config, o): setattr(config, o, 0.) # on a CPU, attention with dropout has no fused kernel
    with quietly(): AutoModelForCausalLM.from_config(config).save_pretrained(folder, max_shard_size='20MB')
    train_tokenizer(['the cat sat on the mat']*20, 300).save_pretrained(folder)

def trained(c, folder, phase):
    "Two steps as the experiments make them; what is held at the end, in bytes"
    import torch
    from sae_ception import pretraining,training
    from sae_ception.data import make_task
    from sae_ception.huggingface import load_lm,load_tokenizer
    from sae_ception.models import make_model
    from sae_ception.sae.coders import SAE,SAEConfig
    from sae_ception.sharding import local
    from sae_ception.tokens import TokenStream
    rows,layout = c['batch_size'],{o: c[o] for o in ('shards', 'precision', 'checkpointing', 'accumulation') if o in c}
    words,width = [f'the cat {i} sat on the mat' for i in range(9)],int(c['model'].partition(':')[2].partition('x')[0])
    texts = [' '.join(words)*40]*400
    held,site = {},f'layers.{c.get("layer", 1)}.resid_post'
    with phase('loading'):
        if c['job'] == 'pretrain':
            config = pretraining.PretrainConfig(tokens=2*rows*c['context'], batch_size=rows, evaluations=1, device='cpu', **layout)
            model,tokenizer = load_lm(folder, layout=config)
        else:
            config = training.TrainConfig(epochs=1, batch_size=rows, device='cpu', part=c.get('part', 'all'), **layout)
            n = max(3*rows, 12) # a row of each class is held out
            task = make_task(texts[:n], [i % 2 for i in range(n)], 'cats', ('a', 'b'))
            model = make_model(folder, task, 0, config if config.shards > 1 else None, max_length=c['context'])
    def note(model, opt): held.update(
        weights=sum(local(o).nbytes for o in (*model.parameters(), *model.buffers())), gradients=sum(local(p.grad).nbytes for p in model.parameters() if p.grad is not None),
        moments=sum(local(v).nbytes for s in opt.state.values() for v in s.values() if torch.is_tensor(v)))
    module = pretraining if c['job'] == 'pretrain' else training
    step = module._step
    def watched(s, *args): step(s, *args); note(s.model if c['job'] == 'pretrain' else s.net, s.opt)
    module._step = watched
    try:
        with phase('training'):
            if c['job'] == 'pretrain':
                sae = SAE(width, SAEConfig(width=4*width, k=8))
                pretraining.pretrain(model, TokenStream(texts, tokenizer, c['context']), config, pretraining.token_auxiliary('per_token', sae, 4, .1), site, checkpoint=f'{folder}.saved' if c.get('save') else None)
            else: training.finetune([model], task, config, site=site)
    finally: module._step = step
    return held

def measure(c, folder):
    "One case, in this process"
    from sae_ception.plan import PlanConfig,estimate
    from sae_ception.processes import everyone,leads
    kind,_,size = c['model'].partition(':')
    found,base = {},0
    class phase(Most):
        def __init__(self, name): self.name = name
        def __exit__(self, *_): super().__exit__(); found[self.name] = self.bytes - base
    trained(c | dict(model=f'{kind}:{SMALL}', layer=0, batch_size=2*c['n']*c.get('accumulation', 1), context=16), f'{folder}/{kind}:{SMALL}', phase)
    settle()
    base = of('VmRSS')
    held = trained(c, f'{folder}/{c["model"]}', phase)
    q = PlanConfig(f'{folder}/{c["model"]}', gpus=c['n'], k=8, **{'layer': 1, 'width': 4*int(size.partition('x')[0])} | {k: v for k,v in c.items() if k not in ('name', 'model', 'n', 'save')})
    told = estimate(q)
    told = told[(told.stage == told.stage.iloc[0]) & ~told.part.isin(['Python and libraries', 'model: arms, whole', *([] if c.get('save') else ['model: checkpoint'])])].set_index('part').bytes.to_dict() # a cycle's other models are not here
    worst = {k: max(o[k] for o in everyone(found)) for k in found}
    if leads(): print(json.dumps(c | dict(told=told, held=held, base=base, **worst)), flush=True)

def start(cases, out):
    "Cases of one number of processes, one after the other in the same ones"
    with tempfile.TemporaryDirectory() as d:
        launch = ['-m', 'torch.distributed.run', '--standalone', f'--nproc-per-node={cases[0]["n"]}'] if cases[0]['n'] > 1 else []
        command = [sys.executable, *launch, __file__, '--here', json.dumps([o['name'] for o in cases]), d]
        with subprocess.Popen(command, env={**os.environ, 'OMP_NUM_THREADS': '1', 'HF_HUB_OFFLINE': '1', 'TOKENIZERS_PARALLELISM': 'false'}, stdout=subprocess.PIPE, text=True) as p:
            for line in p.stdout:
                if not line.startswith('{'): continue
                row = json.loads(line)
                with open(out, 'a') as f: f.write(line)
                print(row['name'], f"told {sum(row['told'].values())/1e6:.0f}, measured {row['training']/1e6:.0f} MB", flush=True)
        if p.returncode: raise SystemExit(f'a case failed with exit code {p.returncode}')

# ------------------------------------------------------------------ whole cycles
def stages(run, began, ended):
    "When each stage of a run ended, in its order"
    found,before = {},began
    for o in map(json.loads, Path(run, 'log.jsonl').read_text().splitlines()):
        name = o.get('stage') or o['file'].removesuffix('.json')
        found[name] = before,o['time']
        before = o['time']
    return found | {'figures': (before, ended)}

def watched(words, n, out):
    "A run, and for each of its processes the most that was anonymous or shared in each stage"
    import psutil
    launch = ['-m', 'torch.distributed.run', '--standalone', f'--nproc-per-node={n}'] if n > 1 else []
    command = [sys.executable, *launch, '-m', 'sae_ception', *words.split(), f'processes={n}', '--out', str(out)]
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'HF_HUB_OFFLINE': '1', 'TOKENIZERS_PARALLELISM': 'false'}
    seen,files,began,looked = {},{},time.time(),0
    with tempfile.TemporaryFile('w+') as log,subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL) as p:
        while p.poll() is None:
            if len(files) < n and (looked := looked + 1) % 20 == 0: # who are they?
                for o in psutil.Process(p.pid).children(recursive=True):
                    try:
                        if 'ipykernel_launcher' in ' '.join(o.cmdline()): files[o.environ().get('RANK', '0') if n > 1 else '0'] = f'/proc/{o.pid}/status'
                    except psutil.Error: pass
            for rank,file in files.items():
                try: now = {k: int(v.split()[0])*1024 for k,_,v in (o.partition(':') for o in open(file)) if k in ('RssAnon', 'RssShmem', 'VmHWM')}
                except OSError: continue # it has ended
                if now: seen.setdefault(rank, []).append((time.time(), now['RssAnon'] + now['RssShmem'], now['VmHWM']))
            time.sleep(.01)
        log.seek(0)
        if p.returncode: raise SystemExit(f'{" ".join(command)} failed:\n{log.read()}')
    most = lambda rows, a, b: max((o[1] for o in rows if a <= o[0] <= b), default=0)
    return {rank: dict(hwm=rows[-1][2], stages={k: most(rows, *ab) for k,ab in stages(out, began, time.time()).items()}) for rank,rows in sorted(seen.items())}

def whole(name, folder):
    "A cycle by the command, beside the same with a tiny model, and what `plan` tells"
    from sae_ception.plan import PlanConfig,estimate
    c,found,began = RUNS[name],{},time.time()
    kind = c['model'].partition(':')[0]
    if not (texts := Path(folder, 'texts.csv')).exists():
        words = 'fine great lovely warm funny dull cold long sad weak'.split()
        texts.write_text('text,label\n' + ''.join(f'the film {i} that my sister saw was {words[i % 10]} and so were its music and its cast,{"good" if i % 10 < 5 else "bad"}\n' for i in range(60)))
    for model in (f'{kind}:{SMALL}', c['model']):
        if not Path(folder, model).exists(): subprocess.run([sys.executable, '-c', f'import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from memory import save; save({model!r}, {folder + "/" + model!r})'], check=True)
        words = f'cycle dataset={texts} model={folder}/{model} max_length={RUN["context"]} train_rows={RUN["rows"]} batch_size={RUN["batch_size"]} epochs=1 tune_epochs=1 cycles=1 width={RUN["width"]} sae_k={RUN["k"]} k=3 sae_epochs=2 lr=1e-4 shards={c["shards"]}'
        with tempfile.TemporaryDirectory(dir=folder) as d: found[model] = watched(words, c['n'], Path(d, 'run'))
    told = estimate(PlanConfig(f'{folder}/{c["model"]}', 'cycle', gpus=c['n'], shards=c['shards'], **RUN))
    return dict(name=name, **c, told={s: o.set_index('part').bytes.to_dict() for s,o in told.groupby('stage', sort=False)}, base=found[f'{kind}:{SMALL}'], measured=found[c['model']], seconds=round(time.time() - began, 1))

# ------------------------------------------------------------------ writing
WRITING = [(25, 8000, 'all at once'), (25, 8000, 'by file'), (50, 8000, 'all at once'), (50, 8000, 'by file'), (2, 200_000, 'by file')] # blocks of width 1024, words

def written(folder, width, blocks, vocab, how):
    "What writing a model in slices takes beside them"
    import threading
    from types import SimpleNamespace
    import torch
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM
    from sae_ception.huggingface import _file,fresh_config,write_model
    from sae_ception.processes import everyone
    from sae_ception.sharding import local,shard
    with init_empty_weights(): model = AutoModelForCausalLM.from_config(fresh_config(f'llama:{width}x{blocks}', pad_token_id=0, vocab_size=vocab)).eval()
    model.tie_weights()
    shard(model, SimpleNamespace(shards=2, precision='no', offload=False, device='cpu')).to_empty(device='cpu')
    with torch.no_grad():
        for p in model.parameters(): local(p).normal_()
    settle()
    looked,over,began = [],threading.Event(),time.monotonic()
    def look():
        while not over.wait(.005): looked.append(of('RssAnon') + of('RssShmem'))
    before = of('RssAnon') + of('RssShmem')
    (thread := threading.Thread(target=look)).start()
    write_model(model, folder, size=_file if how == 'by file' else 2**60)
    over.set(); thread.join()
    first,other = everyone(max(looked, default=before) - before)
    sizes = [p.nbytes for p in model.parameters()]
    return dict(kind='writing', name='writing', how=how, weights=sum(sizes), slices=sum(sizes)//2, largest=max(sizes), first=first, other=other, seconds=round(time.monotonic() - began))

def writing():
    from sae_ception.processes import first,join,leads,wait
    join(2)
    with tempfile.TemporaryDirectory() as d: # of the first process
        written(first(d) + '/small', 32, 2, 300, 'by file')
        for i,(blocks,vocab,how) in enumerate(WRITING):
            row = written(f'{first(d)}/{i}', 1024, blocks, vocab, how)
            if leads(): print(json.dumps(row), flush=True)
        wait()

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('out', nargs='?'); p.add_argument('--only', default=''); p.add_argument('--runs', action='store_true'); p.add_argument('--writing', action='store_true'); p.add_argument('--folder'); p.add_argument('--here', nargs=2)
    a = p.parse_args()
    if a.here:
        from sae_ception.processes import join,leads,wait
        join()
        names,folder = json.loads(a.here[0]),a.here[1]
        for name in names:
            kind = CASES[name]['model'].partition(':')[0]
            for o in (CASES[name]['model'], f'{kind}:{SMALL}') if leads() else ():
                if not Path(folder, o).exists(): save(o, f'{folder}/{o}')
            wait()
            measure(CASES[name], folder)
    elif a.writing and 'WORLD_SIZE' in os.environ: writing()
    elif a.writing:
        done = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2', __file__, '--writing'], env={**os.environ, 'OMP_NUM_THREADS': '1'}, stdout=subprocess.PIPE, text=True, check=True)
        with open(a.out, 'a') as f: f.write(''.join(o + '\n' for o in done.stdout.splitlines() if o.startswith('{')))
    elif a.runs:
        with tempfile.TemporaryDirectory() as d:
            if a.folder: Path(a.folder).mkdir(parents=True, exist_ok=True)
            for name in (o for o in RUNS if a.only in o):
                row = whole(name, str(Path(a.folder or d).resolve()))
                with open(a.out, 'a') as f: f.write(json.dumps(row) + '\n')
                print(json.dumps(row), flush=True)
    else:
        for n in (1, 2):
            if chosen := [o for o in CASES.values() if o['n'] == n and a.only in o['name']]: start(chosen, a.out)
