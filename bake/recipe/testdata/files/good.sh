#!/bin/bash
set -e
echo ok
