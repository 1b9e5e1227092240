package com.azure.identity;

public class DefaultAzureCredential implements com.azure.core.credential.TokenCredential {}
