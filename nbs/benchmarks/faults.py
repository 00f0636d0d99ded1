#!/usr/bin/env python3
"""Does to runs what goes wrong on real machines, and counts what came of it. Every line is one fault, as JSON.

    python faults.py kills  faults.jsonl                SIGKILL at 60 random moments: of all processes, of the kernel, of the launcher
    python faults.py stops  faults.jsonl                SIGTERM and SIGINT, ten times each
    python faults.py ranks  faults.jsonl                two processes under torchrun, of which one dies, twelve times; two kernels that die at once
    python faults.py stores faults.jsonl                a store that three processes write, of which one, or all, die or are stopped, eight times
    python faults.py disks  faults.jsonl                a full disk, a directory that may not be written to, damaged checkpoints, stages, manifests and stores
    python faults.py others faults.jsonl                a clock that jumps, two runs in one directory, a hub that is down
    python faults.py memory faults.jsonl                memory over 20,000 steps and more, and over 30 cycles
    python faults.py all    faults.jsonl                all of these (about two hours of one core); the fuzz is in fuzz.py

Every run is started as a person starts it, `python -m sae_ception ...`, is disturbed, and is started again by the same command until it is done. Then its
directory must equal that of a run that nothing disturbed: the same files, byte for byte.

What is random is decided by the seed, the kind of fault and its number, so `--only 17` does again what was done to run 17 (a moment in seconds is as exact as the machine).
Faults that are in the file already, of the same code, are not done again: a series can be stopped, or done in pieces of some `--minutes`, and goes on. With a `--folder` that stays, so do the undisturbed runs.
"""
import argparse,ast,ctypes,hashlib,json,os,platform,random,re,shutil,signal,subprocess,sys,tempfile,time
from importlib.resources import files
from pathlib import Path

import psutil

CASES = dict(
    cycle='cycle cycles=1 epochs=6 tune_epochs=3 sae_epochs=10 width=64 sae_k=6',
    study='study seeds=0,1 arms=control,per_class cycles=1 epochs=6 tune_epochs=3 sae_epochs=10 width=64',
    lm_sae='lm_sae model_name=gpt2:32x1 layer=0 vocab_size=300 pretrain_tokens=20000 training_tokens=16384 eval_tokens=4096 buffer_tokens=4096 n_evals=4 context_size=32',
    lm_store='lm_sae model_name=gpt2:32x1 layer=0 vocab_size=300 pretrain_tokens=20000 training_tokens=16384 eval_tokens=4096 store=true n_evals=4 context_size=32',
    pretrain='pretrain model_name=gpt2:32x1 vocab_size=300 pretrain_tokens=20000 training_tokens=8192 sae_tokens=8192 eval_tokens=4096 seeds=0 arms=control,per_token '
             'width=64 sae_k=8 context_size=32 k=2',
    sae='sae epochs=20 sae_epochs=30 width=64',
    baseline='baseline epochs=40')
SAVE_EVERY = .2 # seconds between checkpoints, where 20 would be none at all in runs this short
LEFT_OUT = '`log.jsonl` (a time in every line) and the executed notebook (times, and what each attempt printed)'

# Loaded by every Python process of a run. It changes nothing; it tells where a process was when its end came (SIGUSR2, just before SIGKILL), and can end it at a chosen file operation.
WATCH = '''
import faulthandler,os,signal,sys
folder = os.environ.get('FAULTS_FOLDER')
if folder and 'ipykernel_launcher' in ' '.join(sys.orig_argv):
    stack = open(os.path.join(folder, f'stack-{os.environ.get("RANK", 0)}'), 'w')
    faulthandler.register(signal.SIGUSR2, file=stack, all_threads=True)
    out,target,seen = os.environ['FAULTS_OUT'],int(os.environ.get('FAULTS_AT', 0)),0
    def end():
        global seen
        seen = -10**9
        faulthandler.dump_traceback(file=stack, all_threads=True); stack.flush()
        for pid in (os.getppid(), os.getpid()) if os.environ['FAULTS_WHOM'] == 'job' else (os.getpid(),): os.kill(pid, signal.SIGKILL)
    def hook(event, args):
        global seen
        if seen == target > 0: end() # just after
        write = event == 'os.rename' and str(args[1]).startswith(out) or event == 'open' and str(args[0]).startswith(out) and isinstance(args[1], str) and 'w' in args[1]
        if not write: return
        seen += 1
        if not target: os.write(count, b'.')
        elif seen == target and os.environ['FAULTS_WHEN'] == 'before': end()
    if target or 'FAULTS_COUNT' in os.environ:
        count = os.open(os.path.join(folder, 'count'), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        sys.addaudithook(hook)
'''

COMMAND = (sys.executable, '-m', 'sae_ception')
TORCHRUN = (sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2', '-m', 'sae_ception')

def words(o):
    "The command of a process"
    try: return ' '.join(o.cmdline())
    except psutil.Error: return ''

def rank_of(o):
    "Its number among the processes of torchrun"
    try: return int(o.environ().get('RANK', -1))
    except psutil.Error: return -1

def send(found, signum):
    "A signal to processes, as far as they live"
    for o in found:
        try: o.send_signal(signum)
        except psutil.Error: pass

def left(found, patience=0.):
    "How many of these processes live"
    until = time.monotonic() + patience
    alive = lambda: sum(o.is_running() and o.status() != psutil.STATUS_ZOMBIE for o in found)
    while alive() and time.monotonic() < until: time.sleep(.05)
    return alive()

class Job:
    "A run that was started as a person starts it"
    def __init__(self, words, out, more=None, command=COMMAND, **env):
        self.out,self.folder = Path(out).resolve(),Path(tempfile.mkdtemp(prefix='faults_'))
        (self.folder/'sitecustomize.py').write_text(WATCH)
        path = os.pathsep.join([str(self.folder), *filter(None, [os.environ.get('PYTHONPATH')])])
        full = {**os.environ, 'PYTHONPATH': path, 'OMP_NUM_THREADS': '1', 'HF_HUB_OFFLINE': '1', 'SAE_CEPTION_SAVE_EVERY': str(SAVE_EVERY), 'FAULTS_FOLDER': str(self.folder),
                'FAULTS_OUT': str(self.out), 'FAULTS_WHOM': 'job', **{k: str(v) for k,v in env.items()}}
        self.log = open(self.folder/'said', 'w+')
        self.p = subprocess.Popen([*command, *words.split(), '--out', str(out), *(more or [])], stdout=self.log, stderr=subprocess.STDOUT,
                                  stdin=subprocess.DEVNULL, env={k: v for k,v in full.items() if v != 'None'}, start_new_session=True)
        self.begin = time.monotonic()

    def family(self):
        "All processes of the run, and the kernels among them"
        try: o = psutil.Process(self.p.pid)
        except psutil.NoSuchProcess: return [],[]
        found = [o, *o.children(recursive=True)]
        return found,[x for x in found if 'ipykernel_launcher' in words(x)]

    def tell(self, kernels):
        "Have kernels write down where they are"
        send(kernels, signal.SIGUSR2)
        if kernels: time.sleep(.03)

    def kill(self, whom='job'):
        "SIGKILL the run as a node failure would, or one of its processes only"
        found,kernels = self.family()
        self.tell(kernels)
        send(dict(job=found, kernel=kernels or found, launcher=found[:1])[whom], signal.SIGKILL)
        self.p.wait()

    def wait(self, timeout=400):
        "The exit code"
        try: return self.p.wait(timeout)
        except subprocess.TimeoutExpired: self.kill(); return 'hangs'

    @property
    def said(self):
        self.log.flush()
        return (self.folder/'said').read_text()
    def stack(self, rank=0): return o.read_text() if (o := self.folder/f'stack-{rank}').exists() else ''
    def close(self): self.log.close(); shutil.rmtree(self.folder, ignore_errors=True)

# Functions on the stack, and what a run does while they are
DOING = dict(write_store='writing a store', pretrain='pretraining', base_model='data', finetune='model training', train_saes='SAE training', train_on='LM SAE training',
             _evaluate='evaluation', evaluate_activations='evaluation', results='evaluation', compare_arms='evaluation', perplexity='evaluation', choose_k='evaluation', at_work='evaluation', intervention_sweep='evaluation', reconstruction='evaluation', held_out='evaluation',
             collect='collecting activations', collect_tokens='collecting activations', embed='figures', savefig='figures', strongest_texts='figures', strongest='figures', load_task='data', TokenStream='data',
             tokenizer_of='data', load_model='reading models', saes='SAE training', models='model training')
WRITING = 'atomic','write_tensors','write_json','save_pretrained','save_coders','finish','log','_lock','fsync'

def where(stack):
    "What the run was doing, from the functions on the stack of its main thread: in a word, was it writing, and our own innermost functions"
    lines = stack.split('Current thread')[-1] if 'Current thread' in stack else stack.split('most recent call first')[-1]
    names,ours = re.findall(r'in (\w+)$', lines, re.M),re.findall(r'sae_ception/([\w/]+)\.py", line (\d+) in (\w+)$', lines, re.M)
    if not names: return dict(doing='starting', writing=False, stack=[])
    doing = next((DOING[o] for o in names if DOING.get(o)), None) or ('imports' if 'exec_module' in names or '_find_and_load' in names else 'between' if 'run_cell' in names or 'run_code' in names else 'starting')
    return dict(doing=doing, writing=any(o in WRITING for o in names), stack=[f'{a}:{n} {f}' for a,n,f in ours[:4]])

def contents(out):
    "What is compared: every file of a run, but those with times in them: the log, the executed notebook, and what processes of torchrun beside the first say"
    def digest(o): return hashlib.sha256(o.read_bytes()).hexdigest()[:16]
    return {o.relative_to(out).as_posix(): digest(o) for o in sorted(Path(out).rglob('*')) if o.is_file() and o.name != 'log.jsonl' and not (o.suffix == '.ipynb' and o.parent == Path(out)) and o.parent != Path(out)/'processes'}

def difference(out, reference):
    found = contents(out)
    return sorted(f'{"missing" if o not in found else "left behind" if o not in reference else "differs"}: {o}' for o in found.keys() | reference if found.get(o) != reference.get(o))

def code_of():
    "A hash of the code that is tried, without its comments"
    home,digest = Path(files('sae_ception')),hashlib.sha256()
    for o in sorted(home.rglob('*.py')): digest.update(ast.dump(ast.parse(o.read_text())).encode())
    for o in sorted((home.parent/'nbs/experiments').glob('*.ipynb')): digest.update(o.read_bytes())
    return digest.hexdigest()[:8]

_references = {}
def undisturbed(case, folder, command=COMMAND):
    "A run that nothing disturbs: its files, when each was written, and how often something was opened or renamed"
    name = f'{case}-undisturbed' + '-two'*(command is TORCHRUN)
    out,note = Path(folder)/name,Path(folder)/f'{name}.json'
    if name not in _references and note.exists() and (kept := json.loads(note.read_text()))['code'] == code_of(): _references[name] = kept
    if name in _references: return _references[name]
    shutil.rmtree(out, ignore_errors=True)
    job = Job(CASES[case], out, command=command, **(dict(FAULTS_COUNT=1) if command is COMMAND else {}))
    code = job.wait()
    if code: raise SystemExit(f'{case} fails undisturbed, with {code}:\n{job.said}')
    took,begun = time.monotonic() - job.begin,(out/'config.json').stat().st_mtime
    marks = sorted((o.stat().st_mtime - begun, o.relative_to(out).as_posix()) for o in out.rglob('*') if o.is_file())
    _references[name] = dict(files=contents(out), marks=marks, took=took, operations=(job.folder/'count').stat().st_size if command is COMMAND else 0, bytes=sum(o.stat().st_size for o in out.rglob('*') if o.is_file()), code=code_of())
    note.write_text(json.dumps(_references[name]))
    job.close()
    return _references[name]

def go_on(case, out, reference, tries=3, **env):
    "The same command until it is done; how often, the last words, and what differs from the undisturbed run"
    for attempt in range(1, tries + 1):
        job = Job(CASES[case], out, **env)
        code,said = job.wait(),job.said
        job.close()
        if code == 0: break
    return dict(attempts=attempt, code=code, differs=difference(out, reference['files']), **(dict(said=said[-600:]) if code else {}))

def at_random(rng, job, reference, share=1.):
    "Wait for a random moment of the work (of its first `share`), just after a random file, or in the first seconds of the process; tells how long after which file it is"
    if rng.random() < .1:
        time.sleep(after := rng.uniform(0, .4*reference['took']))
        return f'{after:.2f} s after its start'
    marks = [o for o in reference['marks'] if o[0] <= share*reference['marks'][-1][0]]
    if rng.random() < .5: at = rng.uniform(0, marks[-1][0] + .3); i = max(k for k,o in enumerate(marks) if o[0] <= at or not k); after = max(0, at - marks[i][0]) # any time
    else: i,after = rng.randrange(len(marks)),rng.uniform(0, .05) # just after a file was written
    while not (job.out/marks[i][1]).exists() and job.p.poll() is None: time.sleep(.002)
    time.sleep(after)
    return f'{after:.2f} s after {marks[i][1]}'

def kept(out, end):
    "Seconds between the last time that anything was written which a restart uses, and the end"
    names = [o for o in Path(out).rglob('*') if o.is_file() and o.suffix in ('.safetensors', '.json') and not o.name.endswith('.tmp')]
    return max(0., end - max((o.stat().st_mtime for o in names), default=end))

def again(do, tries=5):
    "Do it until it was in time: a moment that came after the end is drawn again"
    for _ in range(tries):
        if found := do(): return found

def kill(i, rng, folder, cases):
    "SIGKILL at a random moment; every third at a file operation: before a file is opened or renamed, or just after"
    case,whom,out = cases[i % len(cases)],('job', 'job', 'kernel', 'launcher')[i//len(cases) % 4],Path(folder)/f'kill-{i}'
    reference = undisturbed(case, folder)
    def once():
        nonlocal whom
        shutil.rmtree(out, ignore_errors=True)
        if i % 3 == 2:
            at,when,whom = rng.randint(1, reference['operations']),rng.choice(('before', 'after')),('job', 'kernel')[whom == 'kernel']
            job,moment = Job(CASES[case], out, FAULTS_AT=at, FAULTS_WHEN=when, FAULTS_WHOM=whom),f'{when} file operation {at} of {reference["operations"]}'
            code = job.wait()
        else:
            job = Job(CASES[case], out)
            moment = at_random(rng, job, reference)
            early = job.p.poll() is None
            job.kill(whom)
            code = job.p.returncode if early else 0
        stack = job.folder/'stack-0'
        found = dict(moment=moment, **where(job.stack()), kept_s=round(kept(out, stack.stat().st_mtime if job.stack() else time.time()), 2), **(dict(message=job.said.strip().splitlines()[-2:]) if whom == 'kernel' else {}))
        job.close()
        return code and found
    if not (found := again(once)): return
    rest = sum(o.name.endswith('.tmp') for o in out.rglob('*'))
    return dict(fault='SIGKILL', case=case, whom=whom, **found, half_written=rest, **go_on(case, out, reference))

def stop(i, rng, folder, cases):
    "SIGTERM or SIGINT at a random moment: to the launcher, or to all processes as a scheduler does"
    case,name,whom,out = cases[i % len(cases)],('SIGTERM', 'SIGINT')[i % 2],('launcher', 'all')[i//2 % 2],Path(folder)/f'stop-{i}'
    reference = undisturbed(case, folder)
    def once():
        shutil.rmtree(out, ignore_errors=True)
        job = Job(CASES[case], out)
        moment = at_random(rng, job, reference)
        family,kernels = job.family()
        job.tell(kernels)
        send(family if whom == 'all' else family[:1], getattr(signal, name))
        begin = time.monotonic()
        code = job.wait()
        found = dict(moment=moment, **where(job.stack()), exit=code, right=code in (dict(SIGTERM=143, SIGINT=130)[name], -getattr(signal, name)), seconds=round(time.monotonic() - begin, 2), processes_left=left(family[1:]),
                     told='run it again to resume' in job.said, **(dict(heard=job.said[-300:]) if 'run it again' not in job.said else {}))
        job.close()
        return code and found
    if found := again(once): return dict(fault=name, case=case, whom=whom, **found, **go_on(case, out, reference))

# ------------------------------------------------------------------ several processes
def rank(i, rng, folder, cases):
    "Two processes of torchrun: a kernel, a launcher, both kernels at once or torchrun itself dies at a random moment, or torchrun gets a SIGTERM"
    case,whom,out = cases[i % len(cases)],('kernel', 'launcher', 'kernel', 'torchrun', 'both kernels', 'torchrun, SIGTERM')[i//len(cases) % 6],Path(folder)/f'rank-{i}'
    reference = undisturbed(case, folder, TORCHRUN)
    def once():
        shutil.rmtree(out, ignore_errors=True)
        job = Job(CASES[case], out, command=TORCHRUN)
        moment,r = at_random(rng, job, reference),rng.randrange(2)
        family,kernels = job.family()
        launchers = [o for o in family[1:] if ' -m sae_ception ' in words(o) and 'torch.distributed' not in words(o)]
        job.tell(kernels)
        ranked = lambda found: [o for o in found if rank_of(o) == r]
        victims = dict(launcher=ranked(launchers), kernel=ranked(kernels), torchrun=family[:1]).get(whom.split(',')[0], kernels)
        early = job.p.poll() is None and victims
        send(victims, signal.SIGTERM if 'SIGTERM' in whom else signal.SIGKILL)
        begin = time.monotonic()
        code = job.wait()
        rest = left(family[1:], 60)
        lines = [o for o in job.said.splitlines() if o.startswith(f'{CASES[case].split()[0]}: ') and 'running in' not in o]
        found = dict(moment=moment, rank=r if whom in ('kernel', 'launcher') else None, **where(job.stack(r)), exit=code, seconds=round(time.monotonic() - begin, 1), processes_left=rest, messages=len(lines), told=' '.join(lines)[:300])
        job.close()
        return early and code and found
    if found := again(once): return dict(fault='one of two processes', case=case, whom=whom, **found, **go_on(case, out, reference, command=TORCHRUN))

WRITER = """
import sys
from sae_ception.core import logger
from sae_ception.huggingface import load_lm
from sae_ception.pretraining import tokenizer_of
from sae_ception.store import write_store
from sae_ception.tokens import TokenStream
import logging
logging.basicConfig()
tokenizer = tokenizer_of('docstrings', 300)
model,_ = load_lm('gpt2:32x2', tokenizer, 0)
print('ready', flush=True); sys.stdin.readline()
write_store(sys.argv[1], model, TokenStream('docstrings', tokenizer, 32), ['layers.0.resid_post', 'layers.1.mlp_out'], 60_000, 4096, shard_tokens=4096, contexts=8)
"""

def writers(out, n):
    "Processes that write one store"
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'HF_HUB_OFFLINE': '1'}
    found = [psutil.Popen([sys.executable, '-c', WRITER, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) for _ in range(n)]
    for p in found: p.stdout.readline()
    for p in found: p.stdin.write('\n'); p.stdin.flush()
    return found

def writer(i, rng, folder, cases):
    "Three processes write a store; one of them dies and another begins, or all die, or one gets a SIGTERM"
    how,out,whole = ('one dies', 'one dies, and one comes', 'all die', 'one is stopped', 'all are stopped')[i % 5],Path(folder)/f'store-{i}',Path(folder)/'store-undisturbed'
    if 'store' not in _references:
        shutil.rmtree(whole, ignore_errors=True)
        p,begin = writers(whole, 1)[0],time.monotonic()
        said = p.communicate()[1]
        if p.returncode: raise SystemExit(said)
        _references['store'] = dict(files=contents(whole), took=time.monotonic() - begin)
    def once():
        shutil.rmtree(out, ignore_errors=True)
        crowd = writers(out, 3)
        least,after,shards = rng.randrange(16),rng.uniform(0, .1),lambda: len(list(out.glob('*-0*')))
        while shards() < least and any(o.poll() is None for o in crowd): time.sleep(.002)
        time.sleep(after)
        victims = [o for o in (crowd if how.startswith('all') else [rng.choice(crowd)]) if o.poll() is None]
        begun = len(list((out/'writing').glob('*.claim'))),shards()
        send(victims, signal.SIGTERM if 'stopped' in how else signal.SIGKILL)
        if victims and begun[1] < 16: return crowd,after,victims,begun
        for o in crowd: o.communicate()
    if not (found := again(once)): return
    crowd,after,victims,begun = found
    if how == 'one dies, and one comes': crowd += writers(out, 1)
    said = [o.communicate()[1] for o in crowd]
    last = writers(out, 1)[0]
    words = last.communicate()[1]
    return dict(fault='several writers', case='store', whom=how, moment=f'with {begun[0]} claims and {begun[1]} shards', seconds_alone=round(_references['store']['took'], 1), killed=len(victims), exits=[o.returncode for o in crowd],
                taken_over=sum(o.count('left it, it is begun again') for o in said), told=next((o.strip().splitlines()[-1][:200] for o in said if 'stopped' in how and o.strip()), ''), attempts=1, code=last.returncode, differs=difference(out, _references['store']['files']), **(dict(said=words[-600:]) if last.returncode else {}))

# ------------------------------------------------------------------ disks
def mounted(path, size, how='rw'):
    "A file system of its own, in memory"
    path.mkdir(parents=True, exist_ok=True)
    subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={size},{how}', 'tmpfs', str(path)], check=True)

def remount(path, how): subprocess.run(['mount', '-o', f'remount,{how}', str(path)], check=True)
def unmount(path): subprocess.run(['umount', '-l', str(path)], check=True)

def told(said):
    "The words in which a run says why it stopped"
    lines = said.strip().splitlines()
    at = next((i for i,o in enumerate(lines) if ' failed' in o or o.startswith('sae_ception: ')), max(0, len(lines) - 3))
    return ' '.join(' '.join(lines[at:at+3]).split())[:400]

def clean(said): return 'Traceback' not in said

def full(i, rng, folder, cases):
    "A disk that is full before a run is done; then there is room again"
    case,disk = cases[i % len(cases)],Path(folder)/f'full-{i}'
    reference = undisturbed(case, folder)
    size = round(rng.uniform(.05, .9)*reference['bytes'])
    mounted(disk, max(size, 65536))
    try:
        job = Job(CASES[case], disk/'run')
        code,said = job.wait(),job.said
        job.close()
        rest = sum(o.name.endswith('.tmp') for o in disk.rglob('*'))
        remount(disk, 'size=2g')
        if code == 0: return
        return dict(fault='full disk', case=case, share=round(size/reference['bytes'], 2), exit=code, told=told(said), names=bool(re.search(r'No space left on device.*(make room|free|again)', ' '.join(said.split()))), clean=clean(said), half_written=rest,
                    **go_on(case, disk/'run', reference))
    finally: unmount(disk)

def read_only(i, rng, folder, cases):
    "A directory that may not be written to: from the beginning, after a kill, and from a random moment on (for a person who is not root)"
    case,way,nobody,disk = cases[i % len(cases)],('new', 'begun', 'meanwhile')[i % 3],65534,Path(folder)/f'read-only-{i}'
    reference,out = undisturbed(case, folder),disk/'run'
    mounted(disk, '2g')
    try:
        if way == 'begun': job = Job(CASES[case], out); moment = at_random(rng, job, reference); job.kill(); job.close()
        if way == 'meanwhile':
            home = Path(tempfile.mkdtemp(prefix='faults_'))
            for o in (disk, home): o.chmod(0o777)
            job = Job(CASES[case], out, command=('setpriv', f'--reuid={nobody}', f'--regid={nobody}', '--clear-groups', *COMMAND), HOME=home, IPYTHONDIR=home/'ipython', MPLCONFIGDIR=home/'mpl')
            moment = at_random(rng, job, reference)
            for o in [out, *(o for o in out.rglob('*') if o.is_dir())]: o.chmod(0o555)
        else: remount(disk, 'ro'); job,moment = Job(CASES[case], out),way
        code,said = job.wait(),job.said
        job.close()
        if way == 'meanwhile':
            for o in [out, *(o for o in out.rglob('*') if o.is_dir())]: o.chmod(0o777)
            shutil.rmtree(home, ignore_errors=True)
        else: remount(disk, 'rw')
        if code == 0: return
        return dict(fault='read-only directory', case=case, way=way, moment=moment, exit=code, told=told(said), names=bool(re.search(r'(cannot write to|Permission denied|Read-only file system).*(choose|writable)', ' '.join(said.split()))), clean=clean(said),
                    **go_on(case, out, reference))
    finally: unmount(disk)

def flip(file, rng, part=None):
    "One bit, of all or of a part of a file of tensors"
    raw = bytearray(file.read_bytes())
    numbers = 8 + int.from_bytes(raw[:8], 'little') # where they begin
    raw[rng.randrange(numbers if part == 'numbers' else 0, numbers if part == 'header' else len(raw))] ^= 1 << rng.randrange(8)
    file.write_bytes(raw)

def cut(file, rng): file.write_bytes((raw := file.read_bytes())[:rng.randrange(1, len(raw))])

def foreign(file, rng):
    "The same file of another run"
    with tempfile.TemporaryDirectory() as d:
        job = Job(CASES['sae'] + ' seed=7', Path(d)/'other')
        theirs = lambda: list((Path(d)/'other').rglob('checkpoint.safetensors*'))
        while job.p.poll() is None and not theirs(): time.sleep(.002)
        job.kill(); job.close()
        file.write_bytes(theirs()[0].read_bytes())

# What is damaged, how, and what then must happen: `refused`, and the message says what to do; or `mended`: what the file belonged to is computed again, and the message says so
CHECKPOINT,STAGE,MANIFEST,CONFIG,SHARD,META = 'checkpoint','stage','manifest','config.json','store','manifest of a store'
NUMBER,HEADER,EMPTY = lambda o, rng: flip(o, rng, 'numbers'),lambda o, rng: flip(o, rng, 'header'),lambda o, rng: o.write_bytes(b'')
DAMAGES = [(CHECKPOINT, 'a bit of a number', NUMBER, 'refused'), (STAGE, 'a bit of a number', NUMBER, 'mended'), (MANIFEST, 'cut short', cut, 'mended'), (CHECKPOINT, 'a bit of the header', HEADER, 'refused'), (STAGE, 'cut short', cut, 'mended'),
           (CONFIG, 'cut short', cut, 'refused'), (CHECKPOINT, 'cut short', cut, 'refused'), (MANIFEST, 'empty', EMPTY, 'mended'), (STAGE, 'gone', lambda o, rng: o.unlink(), 'mended'), (CHECKPOINT, 'empty', EMPTY, 'refused'), (MANIFEST, 'a bit', flip, 'mended'),
           (CHECKPOINT, "another run's", foreign, 'refused'), (SHARD, 'a bit of a number', NUMBER, 'refused'), (SHARD, 'cut short', cut, 'refused'), (META, 'cut short', cut, 'refused')]

def find(out, what):
    "The files of a kind that are there now"
    every = sorted(o for o in Path(out).rglob('*') if o.is_file() and not o.name.endswith('.tmp') and 'writing' not in o.parts)
    saved = [o for o in every if o.name.startswith(('checkpoint.safetensors', 'resume.safetensors', '.model.safetensors', '.sae.safetensors'))]
    if what == STAGE: return [o for o in every if o.suffix == '.safetensors' and (o.parent/'manifest.json').exists() and o not in saved]
    if what == SHARD: return [o for o in every if o.suffix == '.safetensors' and 'store' in o.parts]
    if what == CONFIG: return [o for o in every if o == Path(out)/'config.json'] # a saved model has one too
    return saved if what == CHECKPOINT else [o for o in every if o.name == {MANIFEST: 'manifest.json', META: 'meta.json'}[what]]

def damaged(i, rng, folder, cases):
    "A file that is damaged while nobody is at work. Where the run is refused, the file is then put back, or removed as the message says"
    what,how,damage,due = DAMAGES[i % len(DAMAGES)]
    case,out = 'lm_store' if what in (SHARD, META) else cases[(i + i//len(DAMAGES)) % len(cases)],Path(folder)/f'damaged-{i}'
    reference = undisturbed(case, folder)
    removed = i//len(DAMAGES) % 2 and what in (CHECKPOINT, CONFIG)
    def once():
        shutil.rmtree(out, ignore_errors=True)
        job = Job(CASES[case], out)
        while job.p.poll() is None and not find(out, MANIFEST if removed and what == CONFIG else what): time.sleep(.002) # what is removed is known by the stages
        time.sleep(rng.uniform(0, .3))
        job.kill(); job.close()
        return find(out, what)
    if not (found := again(once)): return
    file = rng.choice(found)
    whole = file.read_bytes()
    damage(file, rng)
    if file.exists() and file.read_bytes() == whole: return
    job = Job(CASES[case], out)
    code,said = job.wait(),job.said
    job.close()
    row = dict(fault='damaged file', case=case, what=what, how=how, file=file.relative_to(out).as_posix(), exit=code, clean=clean(said))
    if due == 'mended': return dict(**row, told=next((o for o in said.splitlines() if 'is not what was written' in o), '').replace(str(out), '')[-200:], names=file.name in said and 'computed again' in said, attempts=1, code=code, differs=difference(out, reference['files']))
    text = ' '.join(said.split())
    if removed: file.unlink()
    else: file.write_bytes(whole)
    return dict(**row, told=told(said).replace(str(out), ''), names=code == 1 and file.name.split('.')[0] in text and bool(re.search(r'remove it|put an intact copy|remove the folder|copy the ', text)), remedy='removed' if removed else 'put back', **go_on(case, out, reference))

# ------------------------------------------------------------------ others
CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static long off(void) { const char *f = getenv("CLOCK_FILE"); return f && !access(f, F_OK) ? atol(getenv("CLOCK_JUMP")) : 0; }
int clock_gettime(clockid_t c, struct timespec *t) {
  static int (*real)(clockid_t, struct timespec *);
  if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
  int r = real(c, t);
  if (!r && (c == CLOCK_REALTIME || c == CLOCK_REALTIME_COARSE)) t->tv_sec += off();
  return r;
}
time_t time(time_t *t) { struct timespec s; clock_gettime(CLOCK_REALTIME, &s); if (t) *t = s.tv_sec; return s.tv_sec; }
int gettimeofday(struct timeval *t, void *z) { struct timespec s; clock_gettime(CLOCK_REALTIME, &s); t->tv_sec = s.tv_sec; t->tv_usec = s.tv_nsec/1000; return 0; }
"""

def clock(i, rng, folder, cases):
    "The clock of a run jumps by 400 days at a random moment; half of these runs are killed after it, and go on at another date. The times of all files are changed as well"
    case,days,out,flag,shim = cases[i//4 % len(cases)],(400, -400)[i//2 % 2],Path(folder)/f'clock-{i}',Path(folder)/f'jump-{i}',Path(folder)/'clock.so'
    if not shutil.which('cc'): return dict(fault='clock jump', skipped='no C compiler')
    subprocess.run(['cc', '-shared', '-fPIC', '-x', 'c', '-', '-o', str(shim), '-ldl'], input=CLOCK, text=True, check=True)
    reference = undisturbed(case, folder)
    flag.unlink(missing_ok=True); shutil.rmtree(out, ignore_errors=True)
    job = Job(CASES[case], out, LD_PRELOAD=shim, CLOCK_FILE=flag, CLOCK_JUMP=days*86400)
    moment = at_random(rng, job, reference, .5) # early enough for its log to show it
    flag.touch()
    if i % 2:
        time.sleep(rng.uniform(0, 2))
        job.kill()
        for o in out.rglob('*'): os.utime(o, (time.time() + rng.uniform(-1, 1)*3e8,)*2)
    code = job.wait()
    job.close()
    times = [json.loads(o)['time'] for o in (out/'log.jsonl').read_text().splitlines() if o.endswith('}')] if (out/'log.jsonl').exists() else []
    jumped = max([0, *(abs(o - time.time())/86400 for o in times)]) # as the run itself has noted it
    return dict(fault='clock jump', case=case, days=days, killed=bool(i % 2), moment=moment, exit=code, jump_in_log_days=round(jumped), **(go_on(case, out, reference) if i % 2 else dict(attempts=0, code=code, differs=difference(out, reference['files']))))

TWICE = """
import sys,time
from sae_ception import run
if sys.argv[2] == 'unlocked': run._lock = lambda path: None
from sae_ception.cycle import CycleConfig,run_cycles
from sae_ception.data import load_task
from sae_ception.sae.coders import SAEConfig
from sae_ception.sae.training import SAETrainConfig
from sae_ception.training import TrainConfig
task = load_task('digits')
print('ready', flush=True); sys.stdin.readline()
run_cycles(task, CycleConfig(cycles=1, seeds=(0, 1), baseline=TrainConfig(epochs=6), tune=TrainConfig(epochs=3), sae=SAEConfig(64, k=6), sae_train=SAETrainConfig(epochs=10)), sys.argv[1])
"""

def together(i, rng, folder, cases):
    "Two processes of the API with one directory, the second a little later; every other time without the lock, to see what it is for"
    out,lock,apart = Path(folder)/'twice',('locked', 'unlocked')[i % 2],round(rng.uniform(0, .5), 2)
    shutil.rmtree(out, ignore_errors=True)
    start = lambda out: subprocess.Popen([sys.executable, '-c', TWICE, str(out), lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, 'SAE_CEPTION_SAVE_EVERY': '0.01'})
    if 'twice' not in _references:
        shutil.rmtree(alone := Path(folder)/'alone', ignore_errors=True)
        p = start(alone); p.communicate('\n')
        _references['twice'] = contents(alone)
    both = [start(out) for _ in range(2)]
    for p in both: p.stdout.readline()
    for p,s in zip(both, (0, apart)): time.sleep(s); p.stdin.write('\n'); p.stdin.flush()
    said = [p.communicate()[1] for p in both]
    return dict(fault='two at once, API', lock=lock == 'locked', apart_s=apart, exits=[p.returncode for p in both], told=[o.strip().splitlines()[-1].replace(str(out), '')[:300] for o in said if o.strip()], differs=difference(out, _references['twice']))

def twice(i, rng, folder, cases):
    "Two runs in one directory at once, by the command"
    case,out,apart = cases[i % len(cases)],Path(folder)/f'twice-{i}',round(rng.uniform(0, 8), 2)
    reference = undisturbed(case, folder)
    shutil.rmtree(out, ignore_errors=True)
    one = Job(CASES[case], out); time.sleep(apart); two = Job(CASES[case], out)
    codes = [one.wait(), two.wait()]
    said = next((o.said for o,c in zip((one, two), codes) if c), '')
    row = dict(fault='two at once, command', case=case, apart_s=apart, exits=codes, told=told(said).replace(str(out), ''), names='in use by another process' in said or codes == [0, 0] and 'is finished' in two.said, differs=difference(out, reference['files']))
    one.close(); two.close()
    return row

HUB = ('cycle dataset=sst2', 'cycle model=distilbert-base-uncased dataset=docstrings', 'baseline model=google/vit-base-patch16-224', 'lm_sae model_name=gpt2', 'lm_sae tokenizer_name=gpt2', 'lm_sae dataset_path=owner/name',
       'pretrain model_name=EleutherAI/pythia-70m', 'study dataset=ag_news')

def hub(i, rng, folder, cases):
    "A hub that does not answer, and nothing in the cache: what is said, after how long, and was anything computed"
    text,out = HUB[i],Path(folder)/'hub'
    shutil.rmtree(out, ignore_errors=True)
    begin = time.monotonic()
    job = Job(text, out, HF_HUB_OFFLINE=None, HF_ENDPOINT='http://127.0.0.1:9', HF_HOME=Path(folder)/'empty', HF_DATASETS_CACHE=None, TRANSFORMERS_CACHE=None)
    code,said = job.wait(200),job.said
    job.close()
    wanted = text.split()[1].partition('=')[2]
    return dict(fault='hub is down', command=text, exit=code, seconds=round(time.monotonic() - begin, 1), told=told(said).replace(str(out), ''), names=wanted in told(said), clean=clean(said), computed=[o.relative_to(out).as_posix() for o in out.rglob('*.safetensors')])

# ------------------------------------------------------------------ memory
class Meter:
    "Memory of this process, every so many steps; at the last one also after the C library has given back what is free"
    def __init__(self, every, last): self.every,self.last,self.n = every,last,0
    def note(self, **more): print(json.dumps(dict(step=self.n, mb=round(psutil.Process().memory_info().rss/2**20, 2), objects=sys.getallocatedblocks(), **more)), flush=True)
    def __call__(self, *a):
        self.n += 1
        if self.n % self.every == 0: self.note()
        if self.n in (self.every, self.last) and sys.platform == 'linux': ctypes.CDLL(None).malloc_trim(0); self.note(trimmed=True)

def grow_sae(folder, steps):
    "An SAE on rows of a language model as it runs"
    from sae_ception.huggingface import load_lm
    from sae_ception.pretraining import tokenizer_of
    from sae_ception.rows import LiveRows
    from sae_ception.sae.coders import SAEConfig
    from sae_ception.sae.training import Coder,SAETrainConfig,train_on
    from sae_ception.tokens import TokenStream
    tokenizer = tokenizer_of('docstrings', 300)
    model,meter = load_lm('gpt2:16x1', tokenizer, 0)[0],Meter(500, steps)
    class Rows(LiveRows):
        def batch(self, n, part=slice(None)): meter(); return super().batch(n, part)
    rows = Rows(model, TokenStream('docstrings', tokenizer, 32), ['layers.0.resid_post'], 4096, contexts=32)
    train_on(rows, [Coder('layers.0.resid_post', '', SAEConfig(width=64, k=4), SAETrainConfig(rows=steps*64, batch_size=64))], checkpoint=folder, device='cpu', log=Path(folder)/'log.jsonl', every=1000, held_out=1024, save_every=2.)

def grow_pretrain(folder, steps):
    "A language model in training"
    from sae_ception.huggingface import load_lm
    from sae_ception.pretraining import PretrainConfig,held_out_batches,pretrain,tokenizer_of
    from sae_ception.tokens import TokenStream
    tokenizer = tokenizer_of('docstrings', 300)
    model,meter = load_lm('gpt2:16x1', tokenizer, 0)[0],Meter(500, steps)
    stream = TokenStream('docstrings', tokenizer, 16, passes=0)
    following = stream.next
    stream.next = lambda n: (meter(), following(n))[1]
    pretrain(model, stream, PretrainConfig(tokens=steps*2*16, batch_size=2, evaluations=20, device='cpu'), held_out=held_out_batches(TokenStream('docstrings', tokenizer, 16), 512), checkpoint=Path(folder)/'checkpoint.safetensors')

def grow_finetune(folder, steps):
    "A classifier in training, with an auxiliary loss"
    from sae_ception import training
    from sae_ception.data import load_task
    from sae_ception.models import make_model
    from sae_ception.training import Auxiliary,TrainConfig,finetune
    task,meter = load_task('digits'),Meter(500, steps)
    per_epoch = -(-len(task.splits['train'])//64)
    step = training._step
    training._step = lambda *a, **k: (meter(), step(*a, **k))[1]
    finetune([make_model('mlp:32x16', task, 0)], task, TrainConfig(epochs=-(-steps//per_epoch), device='cpu'), [Auxiliary(.001, loss='l1')], None, [0], Path(folder)/'checkpoint.safetensors')

def grow_cycles(folder, steps):
    "Whole cycles in one process, one after the other"
    from sae_ception.cycle import CycleConfig,run_cycles
    from sae_ception.data import load_task
    from sae_ception.sae.coders import SAEConfig
    from sae_ception.sae.training import SAETrainConfig
    from sae_ception.training import TrainConfig
    task,meter = load_task('digits'),Meter(1, steps)
    for i in range(steps):
        run_cycles(task, CycleConfig(cycles=1, seeds=(i,), baseline=TrainConfig(epochs=2, device='cpu'), tune=TrainConfig(epochs=1, device='cpu'), sae=SAEConfig(32, k=6), sae_train=SAETrainConfig(epochs=3)), Path(folder)/str(i))
        meter()

GROW = dict(sae=(grow_sae, 20_000), pretrain=(grow_pretrain, 40_000), finetune=(grow_finetune, 20_000), cycles=(grow_cycles, 30))

def grow(i, rng, folder, cases):
    "Memory over many steps, in a process of its own"
    case = list(GROW)[i]
    begin = time.monotonic()
    done = subprocess.run([sys.executable, __file__, 'grow', case, '--folder', str(Path(folder)/f'grow-{case}')], capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1', 'HF_HUB_OFFLINE': '1'})
    if done.returncode: raise SystemExit(done.stderr[-3000:])
    rows = [json.loads(o) for o in done.stdout.splitlines() if o.startswith('{')]
    return dict(fault='memory', what=GROW[case][0].__doc__, case=case, steps=GROW[case][1], seconds=round(time.monotonic() - begin), curve=[[o['step'], o['mb'], o['objects']] for o in rows if 'trimmed' not in o], trimmed=[o['mb'] for o in rows if 'trimmed' in o])

# ------------------------------------------------------------------ what is tried, how often, and on what
SOME = 'cycle','lm_sae','sae','pretrain','lm_store'
KINDS = dict(kills=[(kill, 60, tuple(CASES))], stops=[(stop, 20, tuple(CASES))], ranks=[(rank, 12, ('baseline', 'lm_sae'))], stores=[(writer, 10, ())], disks=[(full, 10, SOME), (read_only, 9, SOME), (damaged, 2*len(DAMAGES), SOME[:4])],
             others=[(hub, len(HUB), ()), (twice, 4, SOME), (together, 8, ()), (clock, 8, ('cycle', 'lm_sae'))], memory=[(grow, len(GROW), ())])
MOUNTS = full,read_only

def one(fault, i, folder, seed=0, cases=None):
    "A fault, by its number; `None` where the run was over before it came, five times"
    found = next((o[2] for k in KINDS.values() for o in k if o[0] is fault), ())
    row = fault(i, random.Random(f'{fault.__name__} {seed} {i}'), folder, cases or found)
    for o in Path(folder).glob(f'*-{i}'): shutil.rmtree(o, ignore_errors=True) if o.is_dir() else o.unlink()
    return row and dict(seed=seed, i=i, **row)

def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('what', choices=['all', *KINDS, *(o[0].__name__ for k in KINDS.values() for o in k)], help='a kind, or one of its faults')
    a.add_argument('out', help='file of JSON lines to append to')
    a.add_argument('--n', type=int, help='how many of each')
    a.add_argument('--only', type=int, help='the number of one')
    a.add_argument('--seed', type=int, default=0, help='decides what is random')
    a.add_argument('--cases', help='some of ' + ','.join(CASES))
    a.add_argument('--folder', help='where to work; a temporary folder if absent')
    a.add_argument('--minutes', type=float, default=1e9, help='begin nothing after so many')
    a = a.parse_args()
    if a.what == 'grow' and a.out in GROW: # in a process of its own
        Path(a.folder).mkdir(parents=True, exist_ok=True)
        grow,steps = GROW[a.out]
        return grow(a.folder, steps)
    from sae_ception.run import versions
    code,until = code_of(),time.monotonic() + 60*a.minutes
    key = lambda o: (o['code_hash'], o['kind'], o['by'], o['seed'], o['i'])
    seen = {key(o) for o in map(json.loads, open(a.out)) if 'by' in o} if Path(a.out).exists() else set()
    def note(**row):
        text = re.sub(rf'{re.escape(str(folder))}|/tmp/faults_\w+', '', json.dumps(row))
        text = re.sub(rf'\b{re.escape(platform.node())}\b', 'here', text)
        print(text, flush=True)
        with open(a.out, 'a') as f: f.write(text + '\n')
    with tempfile.TemporaryDirectory() as d:
        folder = Path(a.folder or d).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        for what,fault,i,cases in [(what, fault, i, cases) for what,faults in KINDS.items() for fault,n,cases in faults if a.what in ('all', what, fault.__name__) for i in (range(a.n or n) if a.only is None else [a.only])]:
            who = dict(kind=what, by=fault.__name__, code_hash=code)
            if key(dict(who, seed=a.seed, i=i)) in seen: continue
            if time.monotonic() > until: raise SystemExit(3)
            begin = time.process_time() + sum(os.times()[2:4])
            row = dict(seed=a.seed, i=i, fault=fault.__doc__.partition(':')[0], skipped='only root may mount file systems') if fault in MOUNTS and os.getuid() else one(fault, i, folder, a.seed, a.cases and tuple(a.cases.split(',')))
            cpu = time.process_time() + sum(os.times()[2:4]) - begin
            note(**who, core_seconds=round(cpu), **(row or dict(seed=a.seed, i=i, skipped='the run was over first')))
    note(kind='about', what=a.what, settings={k: v for k,v in vars(a).items() if k in ('n', 'only', 'seed', 'cases') and v is not None}, versions=versions())

if __name__ == '__main__': main()
