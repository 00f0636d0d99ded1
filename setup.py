"Packaging reads everything from settings.ini: edit there, not here."
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

cfg = ConfigParser(delimiters=['='])
cfg.read('settings.ini', encoding='utf-8')
cfg = cfg['DEFAULT']
words = lambda key: cfg.get(key, '').split()
lib, experiments = cfg['lib_path'], f"{cfg['lib_path']}.experiments"

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], keywords=words('keywords'),
    author=cfg['author'], author_email=cfg['author_email'], license='Apache-2.0', url=cfg['git_url'],
    project_urls={'Documentation': cfg['doc_host'] + cfg['doc_baseurl']},
    classifiers=['Programming Language :: Python :: 3', 'Intended Audience :: Science/Research'],
    packages=[*find_packages(include=[lib, lib + '.*']), experiments],
    package_dir={experiments: 'nbs/experiments'}, package_data={experiments: ['*.ipynb', 'presets/*.yaml'], f'{lib}.interpret': ['page.*']}, zip_safe=False,
    python_requires='>=' + cfg['min_python'], install_requires=words('requirements'),
    extras_require={o: words(f'{o}_requirements') for o in ('dev', 'trackers')},
    long_description=Path('README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
    entry_points={'console_scripts': words('console_scripts'), 'nbdev': [f'{lib}={lib}._modidx:d']},
)
