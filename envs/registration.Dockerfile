# Written by .ci/lock.py, with the versions of requirements.lock. In the folder of the workflow:
#   docker build -f envs/registration.Dockerfile -t ki67-registration envs
FROM python:3.11.13-slim-bookworm
RUN pip install --no-cache-dir --disable-pip-version-check pip==25.2 \
    && pip install --no-cache-dir --no-deps \
       contourpy==1.3.3 \
       cycler==0.12.1 \
       fonttools==4.68.0 \
       imagecodecs==2026.3.6 \
       kiwisolver==1.5.1 \
       llvmlite==0.50.0 \
       matplotlib==3.11.2 \
       numba==0.68.1 \
       numpy==2.4.6 \
       opencv-python-headless==5.0.0.93 \
       openslide-bin==4.0.1.2 \
       openslide-python==1.4.7 \
       packaging==25.0 \
       pillow==13.0.0 \
       pyparsing==3.3.3 \
       python-dateutil==2.9.0.post0 \
       scipy==1.17.1 \
       simpleitk-simpleelastix==3.0.0a1.post183 \
       simplejpeg==1.9.0 \
       six==1.17.0 \
       tifffile==2026.3.3
