#!/usr/bin/env python3
"""Does several processes' work equal one's? Every experiment by the command, alone and under torchrun, and what differs. Every line is one run, as JSON.

    python processes.py same     processes.jsonl        each experiment and each way of sharing it, in two processes (some in four), against one
    python processes.py layouts  processes.jsonl        one process of several is SIGKILLed in the middle, and another number of them goes on
    python processes.py moved    processes.jsonl        all processes of a language model's cycle are SIGKILLed at once, and another layout goes on
    python processes.py starts   processes.jsonl        one of two processes is SIGKILLed in the first eight seconds, and the same command is given again
    python processes.py twins    processes.jsonl        presets of large models, and what `plan` writes, in tiny: to the end in two processes that share each model
    python processes.py digits   processes.jsonl        what a change of the last digit becomes in one process, for comparison (not with --modes)
    python processes.py ties     processes.jsonl        the same for the SAEs of a language model's cycle (not with --modes)
    python processes.py handed   processes.jsonl        the SAEs of a cycle of several processes, trained again in one (not with --modes)
    python processes.py steps    processes.jsonl        seconds of a step of an SAE whose rows or features are shared (not with --modes)
    python processes.py all      processes.jsonl        all of these
"""
import argparse,json,os,random,re,shutil,subprocess,sys,tempfile,time
from pathlib import Path

import psutil

import faults,sweep

# GPT-2 has dropout, and each process draws it for its own rows; Llama has none. Where a run can begin from what another has trained, it does
CASES = {k: o.replace('gpt2:', 'llama:') for k,o in faults.CASES.items()}
CASES |= dict(auxiliary='auxiliary epochs=10 source=SAE', lm_new=CASES['lm_sae'], **{k: re.sub('llama:[^ ]*', 'LM', CASES[k]) for k in ('lm_sae', 'lm_store')})
CASES['cycle_lm'] = 'cycle dataset=docstrings model=llama:32x2 train_rows=300 max_length=32 batch_size=32 epochs=6 tune_epochs=4 cycles=1 lr=1e-3 width=64 sae_k=8 k=3 sae_epochs=30 sae_on=tokens sae_rows=3000'
EXACT = ' in float32' # cases whose SAEs read activations as the model made them, where the buffer of live rows rounds to bf16
CASES |= {o + EXACT: CASES[o] for o in ('pretrain', 'lm_new')}
SOURCES = dict(SAE=('sae', 'sae-alone'), LM=('lm_new', 'lm_new-alone/model')) # in words of a command: whose run, and where
# name: command, what is added in several processes, how many
MODES = {
    'cycle': ('cycle', '', 2), 'cycle, 2 shards': ('cycle', 'shards=2', 2), 'cycle, 2 shards, twice': ('cycle', 'shards=2', 4),
    'cycle, language model': ('cycle_lm', '', 2), 'cycle, language model, 2 shards': ('cycle_lm', 'shards=2', 2),
    'study': ('study', '', 2), 'sae': ('sae', '', 2), 'auxiliary': ('auxiliary', '', 2), 'baseline': ('baseline', '', 2),
    'pretrain': ('pretrain', '', 2), 'pretrain, 2 shards': ('pretrain', 'shards=2', 2), 'pretrain, 2 shards, twice': ('pretrain', 'shards=2', 4),
    'lm_sae, new model': ('lm_new', '', 2), **{f'lm_sae, {o}': ('lm_sae', f'spread={o}', 2) for o in ('rows', 'features')}, 'lm_sae, rows, 3': ('lm_sae', 'spread=rows', 3),
    **{f'lm_sae, store, {o}': ('lm_store', f'spread={o}', 2) for o in ('rows', 'features')}}

MODES |= {mode + EXACT: (case + EXACT, *how) for mode,(case,*how) in MODES.items() if case in ('pretrain', 'lm_new')}

# Loaded by every Python process of such a case: there is no parameter for it
FLOAT32 = '''
import importlib.machinery,sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name != 'sae_ception.rows': return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        load = spec.loader.exec_module
        def exec_module(module):
            import torch
            load(module)
            init = module.LiveRows.__init__
            init.__defaults__ = tuple(torch.float32 if o is torch.bfloat16 else o for o in init.__defaults__)
        spec.loader.exec_module = exec_module
        return spec
sys.meta_path.insert(0, Finder())
'''

def command(case, more, n, out):
    "The words of a run in `n` processes"
    torchrun = ['-m', 'torch.distributed.run', '--standalone', f'--nproc-per-node={n}'] if n > 1 else []
    words = [re.sub(f'=({"|".join(SOURCES)})$', lambda o: f'={Path(out).parent/SOURCES[o[1]][1]}', o) for o in CASES[case].split()]
    return [sys.executable, *torchrun, '-m', 'sae_ception', *words, *more.split()*(n > 1), f'processes={n}', '--out', str(out)]

KERNEL = 'ipykernel_launcher'
def is_kernel(o): return KERNEL in ' '.join(o.cmdline())

class Started:
    "A run, started as a person starts it"
    def __init__(self, case, more, n, out, **env):
        env = {**os.environ, 'OMP_NUM_THREADS': '1', 'HF_HUB_OFFLINE': '1', 'SAE_CEPTION_SAVE_EVERY': str(faults.SAVE_EVERY), **env}
        if case.endswith(EXACT):
            self.folder = tempfile.TemporaryDirectory()
            Path(self.folder.name, 'sitecustomize.py').write_text(FLOAT32)
            env['PYTHONPATH'] = os.pathsep.join([self.folder.name, *filter(None, [env.get('PYTHONPATH')])])
        self.out,self.n,self.log,self.begin = Path(out),n,tempfile.TemporaryFile('w+'),time.monotonic()
        self.p = subprocess.Popen(command(case, more, n, out), stdout=self.log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=env, start_new_session=True)

    def wait(self, timeout=900):
        "The exit code, and what was said"
        try: code = self.p.wait(timeout)
        except subprocess.TimeoutExpired: self.kill(); code = 'hangs'
        self.seconds = time.monotonic() - self.begin
        self.log.seek(0)
        self.said = self.log.read()
        return code

    @property
    def family(self):
        try: return [(o := psutil.Process(self.p.pid)), *o.children(recursive=True)]
        except psutil.NoSuchProcess: return []

    def kill(self):
        "All of it at once, as when a machine fails"
        for o in self.family:
            try: o.kill()
            except psutil.Error: pass
        self.p.wait()

    def process(self, rank, what=KERNEL):
        "The kernel of one of the processes, or `sae_ception` itself; nothing while there is none"
        for o in self.family:
            try:
                if (is_kernel(o) if what == KERNEL else what in o.cmdline()) and o.environ().get('RANK', '0' if self.n == 1 else '') == str(rank): return o
            except psutil.Error: pass

# ------------------------------------------------------------------ what differs
TIMES = 'time', 'seconds', 'took', 'created', 'host', 'pid'

def numbers(o, at=''):
    "Names and values of everything in a JSON value, but times"
    if isinstance(o, dict):
        for k,v in o.items():
            if k not in TIMES: yield from numbers(v, f'{at}.{k}' if at else str(k))
    elif isinstance(o, list):
        for i,v in enumerate(o): yield from numbers(v, f'{at}[{i}]')
    else: yield at,o

def values(file):
    "Names and values of what a file holds: numbers, words, or tensors"
    import pandas as pd
    from safetensors.torch import load_file
    if file.suffix == '.safetensors': return load_file(file)
    if file.suffix == '.parquet': return dict(numbers(json.loads(pd.read_parquet(file).to_json(orient='records', double_precision=15))))
    if file.suffix == '.json': return dict(numbers(json.loads(file.read_text())))
    if file.suffix == '.jsonl': return dict(numbers([o for o in map(json.loads, file.read_text().splitlines()) if o.get('event') == 'coder'])) # its curve; what was told twice, as a run was taken up again, is no difference

def distance(a, b):
    "How far two values are from each other, relative to the first where that is above 1; infinite where that cannot be said"
    import torch
    if isinstance(a, torch.Tensor): return float((a.double() - b.double()).abs().max()/max(1, float(a.double().abs().max()))) if a.shape == b.shape and a.dtype == b.dtype and a.numel() else 0. if a.shape == b.shape else float('inf')
    if a == b or a != a and b != b: return 0.
    if any(isinstance(o, bool) or not isinstance(o, (int, float)) for o in (a, b)): return float('inf')
    return abs(a - b)/max(1, abs(a))

# What is the same thing in other words: checksums of files that differ in the last digit
DEPENDENT = re.compile(r'sha256|checksum|hash|sums|files\.|manifest|store$|fingerprint|notes')

def kind(name): return 'curves' if re.search(r'history|log\.jsonl|curves', name) else 'weights' if name.endswith('.safetensors') else 'metrics'

def compared(one, many):
    "What differs between two run directories: the largest difference of curves, weights and metrics and where it is, and files of only one of them"
    found = [{o.relative_to(d).as_posix(): o for o in sorted(d.rglob('*')) if o.is_file() and 'processes' not in o.relative_to(d).parts} for d in map(Path, (one, many))]
    row = dict(files=len(found[0]), only_alone=sorted(found[0].keys() - found[1]), only_together=sorted(found[1].keys() - found[0]), bytes_differ=[], curves=0., weights=0., metrics=0., where={})
    for name in sorted(found[0].keys() & found[1]):
        a,b = (o[name] for o in found)
        if a.suffix == '.ipynb' and '/' not in name: continue # times, and what was printed
        if a.read_bytes() != b.read_bytes() and name != 'log.jsonl': row['bytes_differ'].append(name)
        if (x := values(a)) is None: continue
        y,what = values(b),kind(name)
        for k in x.keys() | y.keys():
            if DEPENDENT.search(k) or name == 'log.jsonl' and isinstance(x.get(k), str): continue # processes finish in another order
            far = distance(x[k], y[k]) if k in x and k in y else float('inf')
            if far > row[what]: row[what],row['where'][what] = far,f'{name}: {k}' + (f', {x.get(k)} and {y.get(k)}' if what != 'weights' else '')
    return row

_alone = {}
def alone(case, folder):
    "The same command in one process, undisturbed"
    if case not in _alone:
        for name,(source,_) in SOURCES.items():
            if f'={name}' in CASES[case]: alone(source, folder)
        out = Path(folder)/f'{case}-alone'
        if not (out/'results.json').exists():
            shutil.rmtree(out, ignore_errors=True)
            o = Started(case, '', 1, out)
            if o.wait(): raise SystemExit(f'{case} fails in one process:\n{o.said}')
            (out.parent/f'{case}.seconds').write_text(str(o.seconds))
        _alone[case] = out,float((out.parent/f'{case}.seconds').read_text())
    return _alone[case]

def folder_of(folder, mode): return Path(folder)/mode.replace(', ', '-').replace(' ', '_')

def same(folder, modes=tuple(MODES)):
    "Each experiment and each way of sharing it against one process"
    for mode in modes:
        (case,more,n),out = MODES[mode],folder_of(folder, mode)
        one,took = alone(case, folder)
        shutil.rmtree(out, ignore_errors=True)
        o = Started(case, more, n, out)
        code = o.wait()
        yield dict(mode=mode, processes=n, code=code, seconds_alone=round(took, 1), seconds=round(o.seconds, 1), **(dict(said=o.said[-1500:]) if code else compared(one, out)))

# ------------------------------------------------------------------ one dies, and others go on
# mode, and how many begin and how many go on
LAYOUTS = {f'{mode}, {a} to {b}': (mode, a, b) for mode,a,b in (
    ('cycle', 2, 1), ('cycle', 1, 2), ('cycle, 2 shards', 2, 1), ('cycle, 2 shards', 2, 4), ('study', 2, 4), ('study', 2, 1), ('sae', 2, 1), ('auxiliary', 2, 1), ('baseline', 2, 4), ('baseline', 4, 2),
    ('pretrain', 1, 2), ('pretrain, 2 shards', 2, 1), ('pretrain, 2 shards', 4, 2), ('lm_sae, rows', 2, 4), ('lm_sae, features', 2, 1), ('lm_sae, features', 1, 4), ('lm_sae, store, rows', 2, 1), ('lm_sae, store, features', 2, 4))}

def layouts(folder, modes=tuple(LAYOUTS), seed=0, tries=5):
    "One process is killed at a random moment; what is said, how soon the others have ended, and how another number of processes ends"
    for name in modes:
        mode,a,b = LAYOUTS[name]
        (case,more,_),rng,out = MODES[mode],random.Random(f'{seed} {name}'),Path(folder)/re.sub(r'\W+', '_', f'{name} killed')
        one,took = alone(case, folder)
        first = (one/'config.json').stat().st_mtime
        marks = sorted(o.relative_to(one) for o in one.rglob('*') if o.is_file() and o.parent != one and o.stat().st_mtime > first and o.suffix in ('.json', '.safetensors', '.png'))
        for _ in range(tries): # a moment that comes after the end is drawn again
            shutil.rmtree(out, ignore_errors=True)
            o,mark,rank = Started(case, more, a, out),rng.choice(marks),rng.randrange(a)
            while not (out/mark).exists() and o.p.poll() is None: time.sleep(.01)
            time.sleep(after := rng.uniform(0, .5))
            rest = o.family
            if o.p.poll() is None and (kernel := o.process(rank)): kernel.kill(); break
            o.wait()
        else: continue
        begin = time.monotonic()
        killed,name_of = o.wait(),CASES[case].split()[0]
        row = dict(mode=name, rank=rank, moment=f'{after:.2f} s after {mark}', code=killed, stopped_in_s=round(time.monotonic() - begin, 1), processes_left=sum(x.is_running() and x.status() != psutil.STATUS_ZOMBIE for x in rest),
                   told=[x for x in o.said.splitlines() if x.startswith(f'{name_of}: ') and 'running in' not in x])
        o = Started(case, more, b, out)
        code = o.wait()
        yield dict(**row, again=code, **(dict(said=o.said[-1500:]) if code else compared(one, out)))
        shutil.rmtree(out, ignore_errors=True)

# All die at once, as when a machine fails, while a place of the cycle is being worked at; and another layout goes on
PLACES = {'model': 'cycle_0/.model.safetensors.0.safetensors', 'SAE': 'cycle_0/.sae.safetensors', 'results': 'cycle_0/sae/manifest.json',
          'first arm': 'cycle_1/.model.safetensors.0.safetensors', 'second arm': 'cycle_1/.model.safetensors.1.safetensors', 'SAEs of arms': 'cycle_1/.sae.safetensors'} # and what is awaited
ONE,SLICES,COPIES = ('', 1),('shards=2', 2),('', 2)
MOVED = {f'{a} to {b}, {place}': (how, to, place) for (a, how),(b, to) in ((('2 slices', SLICES), ('1', ONE)), (('2 slices', SLICES), ('2 copies', COPIES)), (('1', ONE), ('2 slices', SLICES))) for place in PLACES}

def moved(folder, modes=tuple(MOVED), seed=0):
    "All processes are killed at once at a random moment of each place; where another layout begins, what it does again, and how it ends"
    (site := Path(folder)/'site').mkdir(exist_ok=True)
    (site/'sitecustomize.py').write_text(sweep.WATCH)
    env = dict(PYTHONPATH=os.pathsep.join([str(site), *filter(None, [os.environ.get('PYTHONPATH')])]))
    one,_ = alone('cycle_lm', folder)
    for name in modes:
        (how,to,place),rng,out = MOVED[name],random.Random(f'{seed} {name}'),Path(folder)/re.sub(r'\W+', '_', f'{name} moved')
        for o in (out, trace := out.with_suffix('.trace')): shutil.rmtree(o, ignore_errors=True)
        trace.mkdir()
        o = Started('cycle_lm', *how, out, **env, SWEEP_TRACE=str(trace))
        while not (out/PLACES[place]).exists() and o.p.poll() is None: time.sleep(.005)
        time.sleep(after := rng.uniform(0, 1))
        rest = o.family
        o.kill()
        stages = {x: x.stat().st_mtime_ns for x in out.rglob('manifest.json')}
        o = Started('cycle_lm', *to, out, **env, SWEEP_TRACE=str(trace))
        code = o.wait()
        loops,_ = sweep.counted(trace, out)
        curves = {} if code else {x.parent.relative_to(out).as_posix(): max(distance(u, v) for u,v in zip(values(one/x.relative_to(out)).values(), values(x).values())) for x in sorted(out.rglob('history.json'))}
        yield dict(mode=name, after=round(after, 2), processes_left=sum(x.is_running() and x.status() != psutil.STATUS_ZOMBIE for x in rest), stages_before=len(stages), stages_again=sum(x.stat().st_mtime_ns != t for x,t in stages.items()),
                   loops={k: {x: v[x] for x in ('begun', 'steps', 'at', 'lost')} | dict(behind=v.get('behind', 0)) for k,v in loops.items()}, again=code, histories=curves, **(dict(said=o.said[-1500:]) if code else compared(one, out)))
        shutil.rmtree(out, ignore_errors=True)

STARTS = {f'{case}, start {i}': (case, i) for case in ('baseline', 'lm_new') for i in range(6)}

def starts(folder, modes=tuple(STARTS)):
    "A process, or its kernel where there is one, is killed in the first eight seconds; and the same command again"
    for name in modes:
        (case,_),rng,out = STARTS[name],random.Random(name),Path(folder)/re.sub(r'\W+', '_', name)
        one,_ = alone(case, folder)
        shutil.rmtree(out, ignore_errors=True)
        rank,moment,kernel = rng.randrange(2),rng.uniform(0, 8),rng.random() < .5
        o = Started(case, '', 2, out)
        time.sleep(moment)
        while not (hit := kernel and o.process(rank) or o.process(rank, 'sae_ception')) and o.p.poll() is None: time.sleep(.01) # torchrun takes a while to start them
        rest,begin = o.family,time.monotonic()
        if hit: what = 'kernel' if is_kernel(hit) else 'process'; hit.kill()
        killed,name_of = o.wait(120),CASES[case].split()[0]
        row = dict(mode=name, rank=rank, what=what, moment=round(begin - o.begin, 2), begun=out.exists(), code=killed, stopped_in_s=round(time.monotonic() - begin, 1),
                   processes_left=sum(x.is_running() and x.status() != psutil.STATUS_ZOMBIE for x in rest),
                   told=[re.sub(r'process \d+ on \S+(?=\))', 'process N on HOST', x) for x in o.said.splitlines() if x.startswith(f'{name_of}: ') and 'running in' not in x], torchrun=[' '.join(re.sub(r'\(pid: \d+\)', '', x).split()) for x in o.said.splitlines() if re.match(r' *(rank|exitcode) +:', x)])
        o = Started(case, '', 2, out)
        code = o.wait()
        yield dict(**row, again=code, **(dict(said=o.said[-1500:]) if code else compared(one, out)))
        shutil.rmtree(out, ignore_errors=True)

# ------------------------------------------------------------------ presets of large models, in tiny
TEXT = 'dataset_path=docstrings training_tokens=16384 sae_tokens=16384 pretrain_tokens=32768 eval_tokens=4096 seeds=0 arms=control,per_token context_size=64 shards=2'
CLASSES = 'dataset=docstrings train_rows=300 max_length=32 batch_size=32 sae_rows=5000 sae_epochs=2 epochs=1 tune_epochs=1 cycles=1 shards=2'
SMALL = 'width=256 sae_k=16'
PLAN = 'plan model=gemma2:64x2 layer=0 gpus=2 shards=2 precision=bf16 checkpointing=true accumulation=2 batch_size=8 width=256 k=16 context=64 rows=3000 device_memory=80'
TWINS = {name: f'pretrain --preset {name} model_name={kind}:64x2 hook_name=layers.0.resid_post {SMALL} {TEXT}' for name,kind in dict(gemma2_27b='gemma2', llama3_8b='llama', gpt_neox_20b_text='gpt_neox').items()}
TWINS |= dict(gpt_neox_20b=f'cycle --preset gpt_neox_20b model=gpt_neox:64x2 {SMALL} k=4 {CLASSES}')
TWINS |= {f'plan job={job}': f'{job} --preset PLAN {o}' for job,o in dict(pretrain=TEXT, cycle=CLASSES).items()}
CASES |= TWINS

def twins(folder, modes=tuple(TWINS)):
    "The presets of models that no machine here could hold, with a tiny model of the same kind; and a preset that `plan` has written"
    for name in modes:
        out = Path(folder)/re.sub(r'\W+', '_', name)
        for o in (out, plan := out.with_name(f'{out.name}.plan')): shutil.rmtree(o, ignore_errors=True)
        if 'PLAN' in TWINS[name]:
            subprocess.run([sys.executable, '-m', 'sae_ception', *PLAN.split(), name.split()[1], '--out', str(plan)], check=True, capture_output=True)
            CASES[name] = TWINS[name].replace('PLAN', str(plan/'preset.yaml'))
        o = Started(name, '', 2, out)
        code = o.wait()
        losses = [r for f in sorted(out.rglob('model/history.json')) for r in json.loads(f.read_text())]
        yield dict(mode=name, code=code, seconds=round(o.seconds, 1), stages=len([*out.rglob('manifest.json')]), finite=all(abs(r['val_loss']) < 1e3 for r in losses),
                   results=(out/'results.json').exists(), **(dict(said=o.said[-1500:]) if code else {}))

# ------------------------------------------------------------------ what a last digit becomes
def digits(folder, epochs=(1, 3, 10, 30, 100)):
    "One process, no layout: an SAE on activations, and on the same whose last digit is another. How far apart FVU and weights are in the end"
    import torch
    from sae_ception.activations import collect
    from sae_ception.core import generator
    from sae_ception.data import load_task
    from sae_ception.models import make_model
    from sae_ception.sae.coders import SAEConfig
    from sae_ception.sae.training import SAETrainConfig,train_sae
    from sae_ception.training import TrainConfig,finetune
    task = load_task('digits')
    net = finetune([make_model('mlp', task, 0)], task, TrainConfig(epochs=20, device='cpu'))[0].model
    x,held = (collect(net, task, split=o).h for o in ('train', 'validation'))
    other = x*(1 + 1e-7*torch.randn(x.shape, generator=generator(0, 'digits')))
    for n in epochs:
        (a,h),(b,g) = (train_sae(o, held, SAEConfig(width=256, k=8), SAETrainConfig(epochs=n), 0, device='cpu') for o in (x, other))
        yield dict(epochs=n, fvu=distance(h[-1]['val_fvu'], g[-1]['val_fvu']), weights=max(distance(p.detach(), q.detach()) for p,q in zip(a.parameters(), b.parameters())))

FIRST,ARMS = ('cycle_0',),('cycle_1/control', 'cycle_1/per_class')

class Retold:
    "SAEs of a language model's cycle, trained again in one process"
    def __init__(self, folder):
        from sae_ception.data import load_task
        from sae_ception.sae.coders import SAEConfig
        from sae_ception.sae.training import SAETrainConfig
        self.one = alone('cycle_lm', folder)[0]
        c = json.loads((self.one/'config.json').read_text())['config']
        self.task,self.n = load_task('docstrings', train_rows=300),c['sae_rows']
        self.how = [kind(**{k: tuple(v) if isinstance(v, list) else v for k,v in c[name].items()}) for kind,name in ((SAEConfig, 'sae'), (SAETrainConfig, 'sae_train'))]

    def read(self, run, names=ARMS):
        "Activations of models in a run directory, for training and for validation"
        import torch
        from sae_ception.activations import collect_tokens
        from sae_ception.models import load_model
        return [torch.stack([collect_tokens(load_model(run/o/'model'), self.task, None, s, n) for o in names]) for s,n in (('train', self.n), ('validation', self.n//8 + 1))]

    def train(self, x):
        from sae_ception.sae.training import train_saes
        return train_saes(*x, *self.how, [0]*len(x[0]))

def apart(run, name, curves):
    "The largest difference from the curves that an SAE has in a run directory"
    was = values(run/name/'sae/history.json')
    return max(distance(was[k], v) for k,v in numbers(curves))

def ties(folder, tries=100, sizes=(1e-7, 1e-6)):
    "The SAEs of one process's models, from activations that are changed by so much of themselves"
    import torch
    from sae_ception.core import generator
    retold = Retold(folder)
    for names in (FIRST, ARMS):
        x = retold.read(retold.one, names)
        first,curves = retold.train(x)
        for name,h in zip(names, curves): yield dict(sae=name, size=0., changed=0, curves=apart(retold.one, name, h), weights=0.)
        for size in sizes:
            for i in range(1, tries + 1):
                saes,curves = retold.train([o*(1 + size*torch.randn(o.shape, generator=generator(i, 'ties', k))) for k,o in enumerate(x)])
                for name,a,b,h in zip(names, first, saes, curves):
                    yield dict(sae=name, size=size, changed=i, curves=apart(retold.one, name, h), weights=max(distance(u.detach(), v.detach()) for u,v in zip(a.parameters(), b.parameters())))

def handed(folder, modes=('cycle, language model', 'cycle, language model, 2 shards')):
    "The SAEs of several processes' models, trained in one process: is what differs in the SAEs there before they are trained?"
    retold = Retold(folder)
    x = retold.read(retold.one)
    for mode in modes:
        for o in same(folder, [mode]): assert not o['code'], o
        many = folder_of(folder, mode)
        y = retold.read(many)
        for i,(arm,h) in enumerate(zip(ARMS, retold.train(y)[1])):
            kept = json.loads((many/arm/'sae/history.json').read_text())
            yield dict(mode=mode, arm=arm, activations=((y[0][i] - x[0][i]).norm()/x[0][i].norm()).item(), kept_from_one=apart(retold.one, arm, kept), again_from_one=apart(retold.one, arm, h), again_from_kept=apart(many, arm, h))

# ------------------------------------------------------------------ what a step costs
def step(how, width, batch=1024, dim=768, n=12):
    "Seconds and CPU seconds of a step, the smallest of some; `alone` is each process by itself with the whole batch, at the same time"
    import torch
    from sae_ception.core import generator,pick_device
    from sae_ception.processes import share,wait
    from sae_ception.sae.coders import SAE,SAEConfig
    from sae_ception.sae.engine import Group,SAETrainConfig
    sae,x,found = SAE(dim, SAEConfig(width=width, k=32)),torch.randn(batch*n, dim, generator=generator(0, 'rows')).to(pick_device('auto')),[]
    group = Group((sae.part(how) if how != 'alone' else sae).to(x.device), SAETrainConfig(batch_size=batch, init='plain'), [0], 1000)
    group.begin(x[:2048])
    sync = torch.cuda.synchronize if x.is_cuda else lambda: None
    for own in x.split(batch):
        units = group.units(own[share(batch)] if how == 'rows' else own)
        wait(); sync()
        t,cpu = time.perf_counter(),time.process_time()
        group.feed(*units, batch)
        sync()
        found.append((time.perf_counter() - t, time.process_time() - cpu))
    # numbers of 4 bytes that a process sends: gradients and counts; or k candidates and the reconstruction of each row, and one sum
    sent = dict(alone=0, rows=2*width*dim + 2*width + dim + 2, features=batch*(32 + dim) + dim + 1)[how]
    return dict(how=how, width=width, batch=batch, dim=dim, threads=torch.get_num_threads(), device=x.device.type, seconds=round(min(s for s,_ in found[2:]), 4), cpu=round(min(c for _,c in found[2:]), 4), megabytes=round(4e-6*sent, 2))

def steps(folder, widths=(4096, 16384)):
    "Rows, features and neither, in two processes"
    from sae_ception.processes import in_processes
    for width in widths:
        for how in ('alone', 'rows', 'features'):
            said = in_processes(f'import json,sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom sae_ception.processes import join; from processes import step\njoin(2)\nprint(json.dumps(step({how!r}, {width})))')
            yield json.loads(said[0])

KINDS = dict(same=same, layouts=layouts, moved=moved, starts=starts, twins=twins, digits=digits, ties=ties, handed=handed, steps=steps)

def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('what', choices=['all', *KINDS])
    a.add_argument('out', help='file of JSON lines to append to')
    a.add_argument('--modes', help='some of ' + '; '.join([*MODES, *LAYOUTS, *MOVED, *STARTS, *TWINS]) + ' (divided by ;)')
    a.add_argument('--folder', help='where to work; a temporary folder if absent')
    a = a.parse_args()
    from sae_ception.run import versions
    with tempfile.TemporaryDirectory() as d:
        folder = Path(a.folder or d)
        folder.mkdir(parents=True, exist_ok=True)
        for what in KINDS if a.what == 'all' else [a.what]:
            for row in KINDS[what](folder, **(dict(modes=a.modes.split(';')) if a.modes else {})):
                row = dict(kind=what, **row)
                print(json.dumps(row), flush=True)
                with open(a.out, 'a') as f: f.write(json.dumps(row) + '\n')
            with open(a.out, 'a') as f: f.write(json.dumps(dict(kind='about', what=what, versions=versions())) + '\n')

if __name__ == '__main__': main()
