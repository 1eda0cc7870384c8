"Everything pip needs to know stands in settings.ini; this file only passes it on."
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

root = Path(__file__).parent
settings = ConfigParser(delimiters=['='])
settings.read(root/'settings.ini', encoding='utf-8')
s = settings['DEFAULT']
setup(
    name=s['lib_name'], version=s['version'], description=s['description'], keywords=s['keywords'],
    author=s['author'], author_email=s['author_email'], url=s['git_url'], license='Apache-2.0',
    long_description=(root/'README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
    packages=find_packages(include=['detnb', 'detnb.*']), include_package_data=True, zip_safe=False,
    python_requires='>=' + s['min_python'], install_requires=s['requirements'].split(),
    extras_require={name.removesuffix('_requirements'): s[name].split() for name in s if name.endswith('_requirements')},
    entry_points={'console_scripts': [s['console_scripts']], 'nbdev': ['detnb=detnb._modidx:d']},
)
